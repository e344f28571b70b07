//! The benchmark: Understudy beside what people would run instead, in one run.

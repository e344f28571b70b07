//! Which requests are traced. As the client says by the flag of its `traceparent`, and of those that say nothing a part.

use std::fmt;

use opentelemetry::trace::{SpanKind, TraceId};
use opentelemetry_sdk::trace::{Sampler, SamplingDecision, ShouldSample as _};

use super::super::{TracesError, ratio};

const SAMPLER: &str = "OTEL_TRACES_SAMPLER";
const ARGUMENT: &str = "OTEL_TRACES_SAMPLER_ARG";

/// One of a hundred.
const DEFAULT: f64 = 0.01;

/// Which part of the requests is traced.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Sampling {
    heeds_parent: bool,
    ratio: f64,
}

impl Sampling {
    /// As the option says, or the variables do; otherwise [`DEFAULT`], heeding the parent.
    pub(super) fn choose(option: Option<f64>, lookup: impl Fn(&str) -> Option<String>) -> Result<Self, TracesError> {
        let heeding = |ratio| Self {
            heeds_parent: true,
            ratio,
        };
        if let Some(ratio) = option {
            return Ok(heeding(ratio));
        }
        let Some(name) = lookup(SAMPLER) else {
            return Ok(heeding(DEFAULT));
        };
        let (heeds_parent, kind) = match name.strip_prefix("parentbased_") {
            Some(kind) => (true, kind),
            None => (false, name.as_str()),
        };
        let ratio = match kind {
            "always_on" => 1.0,
            "always_off" => 0.0,
            // All where there is no argument, as OpenTelemetry has it.
            "traceidratio" => lookup(ARGUMENT).map_or(Ok(1.0), |text| {
                ratio(&text).map_err(|advice| TracesError::Variable {
                    variable: ARGUMENT,
                    value: text,
                    advice,
                })
            })?,
            _ => {
                return Err(TracesError::Variable {
                    variable: SAMPLER,
                    value: name,
                    advice: "use always_on, always_off or traceidratio, or one of them after parentbased_",
                });
            }
        };
        Ok(Self { heeds_parent, ratio })
    }

    /// Whether a request is traced whose parent is, isn't, or isn't known to be.
    pub(super) fn takes(self, parent: Option<bool>, trace_id: TraceId) -> bool {
        if let Some(is_sampled) = parent.filter(|_| self.heeds_parent) {
            return is_sampled;
        }
        let sampler = Sampler::TraceIdRatioBased(self.ratio);
        let result = sampler.should_sample(None, trace_id, "", &SpanKind::Server, &[], &[]);
        result.decision == SamplingDecision::RecordAndSample
    }
}

impl fmt::Display for Sampling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parent = if self.heeds_parent {
            "as the client says, or "
        } else {
            ""
        };
        write!(f, "{parent}{} of all", self.ratio)
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn choose(option: Option<f64>, variables: &[(&str, &str)]) -> Result<Sampling, TracesError> {
        Sampling::choose(option, |name| {
            let found = variables.iter().find(|(variable, _)| *variable == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[rstest]
    #[case::default(None, &[], true, 0.01)]
    #[case::option(Some(0.5), &[("OTEL_TRACES_SAMPLER", "always_on")], true, 0.5)]
    #[case::all(None, &[("OTEL_TRACES_SAMPLER", "always_on")], false, 1.0)]
    #[case::none(None, &[("OTEL_TRACES_SAMPLER", "always_off")], false, 0.0)]
    #[case::parent(None, &[("OTEL_TRACES_SAMPLER", "parentbased_always_off")], true, 0.0)]
    #[case::part(None, &[("OTEL_TRACES_SAMPLER", "traceidratio"), ("OTEL_TRACES_SAMPLER_ARG", "0.2")], false, 0.2)]
    #[case::no_argument(None, &[("OTEL_TRACES_SAMPLER", "parentbased_traceidratio")], true, 1.0)]
    fn is_chosen(
        #[case] option: Option<f64>,
        #[case] variables: &[(&str, &str)],
        #[case] heeds_parent: bool,
        #[case] ratio: f64,
    ) {
        assert_eq!(choose(option, variables).unwrap(), Sampling { heeds_parent, ratio });
    }

    #[rstest]
    #[case::unknown(&[("OTEL_TRACES_SAMPLER", "xray")], "always_on")]
    #[case::argument(&[("OTEL_TRACES_SAMPLER", "traceidratio"), ("OTEL_TRACES_SAMPLER_ARG", "2")], "from 0 to 1")]
    fn what_is_wrong_is_said(#[case] variables: &[(&str, &str)], #[case] advice: &str) {
        let error = choose(None, variables).unwrap_err().to_string();
        assert!(error.contains(advice), "{error}");
    }

    #[rstest]
    #[case(true, 0.0, Some(true), true)]
    #[case(true, 1.0, Some(false), false)]
    #[case(true, 1.0, None, true)]
    #[case(true, 0.0, None, false)]
    #[case(false, 0.0, Some(true), false)]
    #[case(false, 1.0, Some(false), true)]
    fn the_parent_is_heeded_or_not(
        #[case] heeds_parent: bool,
        #[case] ratio: f64,
        #[case] parent: Option<bool>,
        #[case] taken: bool,
    ) {
        let sampling = Sampling { heeds_parent, ratio };
        assert_eq!(sampling.takes(parent, TraceId::from(u128::MAX / 2)), taken);
    }

    #[test]
    fn a_part_is_that_part() {
        let sampling = Sampling {
            heeds_parent: true,
            ratio: 0.25,
        };
        let step = u64::MAX / 1000;
        let ids = (0..1000).map(|n| TraceId::from(u128::from(n * step)));
        let taken = ids.filter(|id| sampling.takes(None, *id)).count();
        assert!((240..=260).contains(&taken), "{taken}");
    }
}

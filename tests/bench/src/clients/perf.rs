//! The count of instructions, where the machine counts them.

/// Reads what `perf stat -x, -e instructions` writes; none where the machine has no such counter.
#[must_use]
pub fn instructions(report: &str) -> Option<f64> {
    let line = report.lines().find(|line| line.contains("instructions"))?;
    line.split(',').next()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_count_and_knows_where_there_is_none() {
        let counted = "# started on Sun Nov 22\n\n5123456789,,instructions,3003211000,100.00,1.21,insn per cycle\n";
        assert_eq!(instructions(counted), Some(5_123_456_789.0));
        assert_eq!(instructions("<not supported>,,instructions,0,100.00,,\n"), None);
        assert_eq!(instructions("<not counted>,,instructions,0,100.00,,\n"), None);
        assert_eq!(instructions(""), None);
    }
}

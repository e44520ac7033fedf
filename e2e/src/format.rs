//! Formats numbers for people.

use checker::group_digits;

/// An amount in hundredths, such as cents, as `12,345.67`.
pub fn format_hundredths(amount: impl Into<i128>) -> String {
    let amount: i128 = amount.into();
    let sign = if amount < 0 { "-" } else { "" };
    let (whole, rest) = (amount.unsigned_abs() / 100, amount.unsigned_abs() % 100);
    format!("{sign}{}.{rest:02}", group_digits(i128::try_from(whole).unwrap_or(i128::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_have_two_decimals_and_groups_of_thousands() {
        assert_eq!(format_hundredths(123_456_789), "1,234,567.89");
        assert_eq!(format_hundredths(-5), "-0.05");
    }
}

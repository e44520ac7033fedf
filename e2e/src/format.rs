//! Formats numbers for people.

/// `1234567` as `1,234,567`.
pub fn group_digits(number: impl Into<i128>) -> String {
    let number: i128 = number.into();
    let digits = number.unsigned_abs().to_string();
    let mut grouped = String::new();
    for (nth, digit) in digits.chars().enumerate() {
        if nth > 0 && (digits.len() - nth).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    if number < 0 { format!("-{grouped}") } else { grouped }
}

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
    fn digits_are_grouped_by_thousands() {
        assert_eq!(group_digits(0), "0");
        assert_eq!(group_digits(999), "999");
        assert_eq!(group_digits(-1_234_567), "-1,234,567");
        assert_eq!(format_hundredths(123_456_789), "1,234,567.89");
        assert_eq!(format_hundredths(-5), "-0.05");
    }
}

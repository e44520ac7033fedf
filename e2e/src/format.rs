//! Formats numbers and tables for people.

use checker::group_digits;
use comfy_table::{CellAlignment, Table, presets};

/// An amount in hundredths, such as cents, as `12,345.67`.
pub fn format_hundredths(amount: impl Into<i128>) -> String {
    let amount: i128 = amount.into();
    let sign = if amount < 0 { "-" } else { "" };
    let (whole, rest) = (amount.unsigned_abs() / 100, amount.unsigned_abs() % 100);
    format!("{sign}{}.{rest:02}", group_digits(i128::try_from(whole).unwrap_or(i128::MAX)))
}

/// A table without borders, each line indented by two blanks. The columns `right` are aligned to the
/// right.
pub fn format_table<const N: usize>(
    header: [&str; N],
    right: &[usize],
    rows: impl IntoIterator<Item = [String; N]>,
) -> Vec<String> {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header).add_rows(rows);
    for (nth, column) in table.column_iter_mut().enumerate() {
        column.set_padding((2, 0));
        if right.contains(&nth) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.lines().map(|line| line.trim_end().to_string()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_have_two_decimals_and_groups_of_thousands() {
        assert_eq!(format_hundredths(123_456_789), "1,234,567.89");
        assert_eq!(format_hundredths(-5), "-0.05");
    }

    #[test]
    fn a_table_is_as_wide_as_its_cells() {
        let rows = [["a", "1"], ["long name", "1,000"]].map(|row| row.map(str::to_string));
        let lines = format_table(["NAME", "COUNT"], &[1], rows);
        assert_eq!(lines, ["  NAME       COUNT", "  a              1", "  long name  1,000"]);
    }
}

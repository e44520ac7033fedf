//! Whole numbers of JSON.

use std::fmt;

use serde::Deserializer;
use serde::de::{Error, Unexpected, Visitor};

/// Reads a whole number of a body, for `#[serde(deserialize_with)]`: to JSON, and to the schemas that
/// describe it, `2` and `2.0` are the same number.
pub fn deserialize_integer<'de, D: Deserializer<'de>, N: TryFrom<i64>>(
    deserializer: D,
) -> Result<N, D::Error> {
    struct IntegerVisitor;

    /// From here on, floating-point numbers do not represent every integer.
    const EXACT_INTEGER_MAX: f64 = 9_007_199_254_740_992.0;

    impl Visitor<'_> for IntegerVisitor {
        type Value = i64;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a whole number")
        }
        fn visit_i64<E: Error>(self, number: i64) -> Result<i64, E> {
            Ok(number)
        }
        fn visit_u64<E: Error>(self, number: u64) -> Result<i64, E> {
            number.try_into().map_err(|_| E::invalid_value(Unexpected::Unsigned(number), &self))
        }
        fn visit_f64<E: Error>(self, number: f64) -> Result<i64, E> {
            match number.fract() == 0.0 && number.abs() < EXACT_INTEGER_MAX {
                true => Ok(number as i64),
                false => Err(E::invalid_value(Unexpected::Float(number), &self)),
            }
        }
    }

    let number = deserializer.deserialize_any(IntegerVisitor)?;
    N::try_from(number).map_err(|_| D::Error::custom(format!("{number} is out of range")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_number_is_one_with_and_without_a_point() {
        let read = |json: &str| {
            let mut json = serde_json::Deserializer::from_str(json);
            deserialize_integer::<_, i32>(&mut json).ok()
        };
        for (json, number) in [("2", 2), ("2.0", 2), ("-3e2", -300), ("0.0", 0)] {
            assert_eq!(read(json), Some(number), "{json}");
        }
        for json in ["2.5", "2147483648", "1e300", "1e16", "18446744073709551615", "\"2\"", "null"]
        {
            assert_eq!(read(json), None, "{json}");
        }
    }
}

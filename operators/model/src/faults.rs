//! Checks of configuration values at plan time; every fault is collected.

use engine_core::Fault;

/// Code of a value that is out of range.
const INVALID_VALUE: &str = "wrong-value";

/// Faults found so far.
#[derive(Debug, Default)]
pub(crate) struct ValueFaults(Vec<Fault>);

impl ValueFaults {
    /// A count must be at least `least`.
    pub(crate) fn at_least(&mut self, key: &str, value: u64, least: u64) {
        if value < least {
            self.fault(
                key,
                format!("`{key}` is {value} and must be at least {least}"),
            );
        }
    }

    /// A number must be above 0.
    pub(crate) fn positive(&mut self, key: &str, value: f64) {
        if !(value.is_finite() && value > 0.0) {
            self.fault(key, format!("`{key}` is {value} and must be above 0"));
        }
    }

    /// A number must be 0 or above.
    pub(crate) fn not_negative(&mut self, key: &str, value: f64) {
        if !(value.is_finite() && value >= 0.0) {
            self.fault(key, format!("`{key}` is {value} and must be at least 0"));
        }
    }

    /// A number must be in `[0, 1)`.
    pub(crate) fn below_one(&mut self, key: &str, value: f64) {
        if !(0.0..1.0).contains(&value) {
            self.fault(
                key,
                format!("`{key}` is {value} and must be at least 0 and below 1"),
            );
        }
    }

    /// Sampling more than once needs a temperature, or every sample is the same.
    pub(crate) fn sampling(&mut self, samples_key: &str, samples: u32, temperature: f64) {
        self.at_least(samples_key, u64::from(samples), 1);
        self.not_negative("temperature", temperature);
        if temperature == 0.0 && samples > 1 {
            let message = format!(
                "`temperature: 0` decodes greedily, so all {samples} samples of a prompt would be the same"
            );
            let help = format!("set `{samples_key}: 1`, or a temperature above 0");
            self.0
                .push(Fault::at(INVALID_VALUE, "temperature", message).with_help(help));
        }
    }

    /// Any other fault of a key's value.
    pub(crate) fn fault(&mut self, key: &str, message: String) {
        self.0.push(Fault::at(INVALID_VALUE, key, message));
    }

    /// Faults of keys inside another one.
    pub(crate) fn within(&mut self, outer: &str, check: impl FnOnce(&mut Self)) {
        let mut inner = Self::default();
        check(&mut inner);
        for mut fault in inner.0 {
            fault.path.insert(0, outer.to_owned());
            self.0.push(fault);
        }
    }

    /// A fault of a key inside another one.
    pub(crate) fn nested(&mut self, outer: &str, key: &str, message: String) {
        let mut fault = Fault::at(INVALID_VALUE, outer, message);
        fault.path.push(key.to_owned());
        self.0.push(fault);
    }

    /// `value` if there was no fault. `under` are the keys that lead to the checked ones.
    pub(crate) fn or<T>(self, under: &[&str], value: T) -> Result<T, Vec<Fault>> {
        if self.0.is_empty() {
            return Ok(value);
        }
        let nested = self.0.into_iter().map(|mut fault| {
            fault
                .path
                .splice(0..0, under.iter().map(|key| (*key).to_owned()));
            fault
        });
        Err(nested.collect())
    }
}

//! The processors of the services, of Kafka and of the load, on a machine with enough of them to keep these
//! apart. The launcher restricts the first two, and the Makefile the load.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

/// Each variable holds a list of processors such as `0-7,16`.
const VARIABLES: [(&str, &str); 3] = [
    ("SERVICES_CPUS", "services and databases"),
    ("KAFKA_CPUS", "Kafka and the registry"),
    ("LOAD_CPUS", "the load"),
];

/// Who uses which processors, for the report.
///
/// # Errors
/// If only some of the parts are restricted, since the others would use the same processors; or if this machine
/// does not have those processors.
pub fn describe() -> Result<String> {
    let Some(lists) = lists(|variable| std::env::var(variable).ok())? else {
        return Ok("shared by everything, the load too".to_string());
    };
    for (variable, cpus) in &lists {
        let mut probe = Command::new("taskset");
        probe.args(["--cpu-list", cpus, "true"]).stderr(Stdio::null());
        let probed = probe.status().context("cannot run taskset of util-linux")?;
        ensure!(probed.success(), "{variable}: this machine does not have the processors {cpus}");
    }
    let parts =
        VARIABLES.iter().zip(&lists).map(|((_, what), (_, cpus))| format!("{what} on {cpus}"));
    Ok(parts.collect::<Vec<_>>().join(", "))
}

/// The list of each variable; `None` if nothing is restricted.
fn lists(of: impl Fn(&str) -> Option<String>) -> Result<Option<Vec<(&'static str, String)>>> {
    let given = VARIABLES.map(|(variable, _)| (variable, of(variable).unwrap_or_default()));
    if given.iter().all(|(_, cpus)| cpus.is_empty()) {
        return Ok(None);
    }
    if let Some((absent, _)) = given.iter().find(|(_, cpus)| cpus.is_empty()) {
        bail!("{absent} is not set: restrict all of the services, Kafka and the load, or none");
    }
    Ok(Some(given.to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_parts_are_restricted_or_none() {
        let with = |given: &'static [&str]| {
            lists(move |variable| given.contains(&variable).then(|| "0-3".to_string()))
        };
        assert!(with(&[]).unwrap().is_none());
        assert_eq!(with(&["SERVICES_CPUS", "KAFKA_CPUS", "LOAD_CPUS"]).unwrap().unwrap().len(), 3);
        let refusal = with(&["SERVICES_CPUS", "LOAD_CPUS"]).unwrap_err().to_string();
        assert!(refusal.starts_with("KAFKA_CPUS is not set"), "{refusal}");
    }
}

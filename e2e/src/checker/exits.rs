//! The exits of processes that a run did not cause (I14). The launcher writes down each exit and each
//! kill or stop of its own; see `launcher/exit_journal.rs`.

use launcher::Exit;

use crate::checker::findings::Findings;
use crate::checker::invariants::Invariant::I14;

/// The unexpected exits, as sentences.
pub fn unexpected_exits(exits: &[Exit]) -> impl Iterator<Item = String> {
    let unexpected = exits.iter().filter(|exit| exit.is_unexpected());
    unexpected.map(|exit| format!("{} exited by itself (I14): it {exit}", exit.name))
}

/// No process exits unless the run caused it. `caused` is the number of exits that the run caused
/// without the launcher, at a crash point for instance.
pub fn check_unexpected_exits(exits: &[Exit], caused: usize, findings: &mut Findings) {
    let unexpected: Vec<&Exit> = exits.iter().filter(|exit| exit.is_unexpected()).collect();
    if unexpected.len() > caused {
        for exit in &unexpected {
            findings.add(I14, "died", || {
                format!(
                    "{} {exit}; {} processes exited, {caused} were expected to",
                    exit.name,
                    unexpected.len()
                )
            });
        }
    }
}

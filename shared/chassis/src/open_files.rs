//! How many files the process may have open, and how many of them each port's clients may take.
//!
//! Promise: clients never take the files that the service itself needs, for its database, for Kafka and
//! for its other ports. It is broken by a port that accepts more connections than its share: with a soft
//! limit of 1,024 files, a container's default, 1,000 kept connections left the relay without a database.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::environment::BadConfiguration;
use crate::limits::Limits;

/// For Kafka's clients (a socket for each broker and two clients), the registry, traces, the runtime, and
/// what is opened for a moment, as for the lookup of a name.
const RESERVED: usize = 128;

/// The loops' own sessions with the database.
const SESSIONS: usize = 8;

/// Connections on the probes' port, and on the operators' port, at most: few ask there.
const EDGE_CONNECTIONS: usize = 128;

/// With fewer connections than this, an API is none.
const API_CONNECTIONS_MIN: usize = 64;

/// Connections that are served at a time.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Shares {
    /// On the API's port.
    pub(crate) api: usize,
    /// On the probes' port, and as many on the operators'.
    pub(crate) edge: usize,
}

/// Raises the soft limit to the hard one. Where that fails, the soft one is what there is.
pub(crate) fn raise() {
    let limit = getrlimit(Resource::Nofile);
    if limit.current == limit.maximum {
        return;
    }
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => {
            tracing::info!(from = ?limit.current, to = ?limit.maximum, "raised the limit of open files")
        }
        Err(error) => {
            tracing::warn!(%error, "the limit of open files stays as it is: {:?}", limit.current)
        }
    }
}

/// The shares that the process's limit has room for; the pool holds that many connections at most.
///
/// # Errors
/// If the limit has no room for a service.
pub(crate) fn shares(pool: u32) -> Result<Shares, BadConfiguration> {
    let shares = shares_of(getrlimit(Resource::Nofile).current, pool)?;
    let usual = Limits::default().connections;
    if shares.api < usual {
        tracing::warn!(
            "the limit of open files has room for {} connections to the API at a time, and not for {usual}",
            shares.api
        );
    }
    Ok(shares)
}

/// `None` is a limit that there is not.
fn shares_of(files: Option<u64>, pool: u32) -> Result<Shares, BadConfiguration> {
    let files = files.and_then(|files| usize::try_from(files).ok()).unwrap_or(usize::MAX);
    let own = RESERVED + SESSIONS + pool as usize;
    let needed = own + 2 * API_CONNECTIONS_MIN;
    if files < needed {
        return Err(BadConfiguration::new(format!(
            "RLIMIT_NOFILE is {files}, and the service needs {needed} open files at least: raise the \
             hard limit, or lower DATABASE_POOL_SIZE."
        )));
    }
    let free = files - own;
    let edge = EDGE_CONNECTIONS.min(free / 4);
    Ok(Shares { api: Limits::default().connections.min(free - 2 * edge), edge })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_ports_together_leave_the_service_the_files_that_it_needs() {
        assert_eq!(shares_of(None, 16).unwrap(), Shares { api: 1024, edge: 128 });
        assert_eq!(shares_of(Some(8192), 16).unwrap(), Shares { api: 1024, edge: 128 });
        assert_eq!(shares_of(Some(1024), 16).unwrap(), Shares { api: 616, edge: 128 });
        for pool in [1, 16, 100, 1000] {
            for files in (0..3000).step_by(7) {
                let Ok(Shares { api, edge }) = shares_of(Some(files), pool) else { continue };
                assert!(api >= API_CONNECTIONS_MIN && edge > 0, "{files} {pool}: {api} {edge}");
                let taken = api + 2 * edge + pool as usize + SESSIONS + RESERVED;
                assert!(taken <= files as usize, "{files} {pool}: {taken}");
            }
        }
    }

    #[test]
    fn a_limit_without_room_for_a_service_is_refused_by_name() {
        let refused = shares_of(Some(256), 16).unwrap_err().to_string();
        assert!(refused.starts_with("RLIMIT_NOFILE is 256"), "{refused}");
    }
}

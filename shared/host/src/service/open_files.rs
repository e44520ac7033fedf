//! The limit of open files, and the share of it for the connections of each port.
//!
//! Promise: connections of clients never use the files that the service itself needs, for its database, for Kafka
//! and for its other ports. A port that accepts more connections than its share breaks that promise: idle
//! connections of clients would leave the relay without a database connection.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::config::env::BadConfiguration;
use crate::http::limits::Limits;

/// Files for the Kafka clients (a socket for each broker and each of two clients), the registry, traces, the
/// runtime, and short uses such as name resolution.
const RESERVED_FILES: usize = 128;

const DEDICATED_CONNECTIONS: usize = 8;

/// Connections on the probe port, and on the admin port, at most: they have few clients.
const INTERNAL_CONNECTIONS_MAX: usize = 128;

/// An API with fewer connections than this cannot do its work.
const API_CONNECTIONS_MIN: usize = 64;

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ConnectionLimits {
    pub(crate) api: usize,
    /// On the probe port, and as many on the admin port.
    pub(crate) internal: usize,
}

/// Raises the soft limit to the hard one. If that fails, the soft limit stays.
pub(crate) fn raise_limit() {
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
            tracing::warn!(%error, "the limit of open files could not be raised from {:?}", limit.current)
        }
    }
}

/// The shares of the process's limit; `pool` is the maximum number of pooled connections.
///
/// # Errors
/// If the limit has no room for a service.
pub(crate) fn connection_limits(pool: u32) -> Result<ConnectionLimits, BadConfiguration> {
    let limits = connection_limits_for(getrlimit(Resource::Nofile).current, pool)?;
    let usual = Limits::default().connections_max;
    if limits.api < usual {
        tracing::warn!(
            "the limit of open files allows {} connections to the API instead of {usual}",
            limits.api
        );
    }
    Ok(limits)
}

/// `None` means that there is no limit.
fn connection_limits_for(
    files: Option<u64>,
    pool: u32,
) -> Result<ConnectionLimits, BadConfiguration> {
    let files = files.and_then(|files| usize::try_from(files).ok()).unwrap_or(usize::MAX);
    let own = RESERVED_FILES + DEDICATED_CONNECTIONS + pool as usize;
    let needed = own + 2 * API_CONNECTIONS_MIN;
    if files < needed {
        return Err(BadConfiguration::new(format!(
            "RLIMIT_NOFILE is {files}, and the service needs {needed} open files at least: raise the \
             hard limit, or lower DATABASE_POOL_SIZE."
        )));
    }
    let free = files - own;
    let edge = INTERNAL_CONNECTIONS_MAX.min(free / 4);
    Ok(ConnectionLimits {
        api: Limits::default().connections_max.min(free - 2 * edge),
        internal: edge,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_ports_together_leave_the_service_the_files_that_it_needs() {
        assert_eq!(
            connection_limits_for(None, 16).unwrap(),
            ConnectionLimits { api: 1024, internal: 128 }
        );
        assert_eq!(
            connection_limits_for(Some(8192), 16).unwrap(),
            ConnectionLimits { api: 1024, internal: 128 }
        );
        assert_eq!(
            connection_limits_for(Some(1024), 16).unwrap(),
            ConnectionLimits { api: 616, internal: 128 }
        );
        for pool in [1, 16, 100, 1000] {
            for files in (0..3000).step_by(7) {
                let Ok(ConnectionLimits { api, internal: edge }) =
                    connection_limits_for(Some(files), pool)
                else {
                    continue;
                };
                assert!(api >= API_CONNECTIONS_MIN && edge > 0, "{files} {pool}: {api} {edge}");
                let taken = api + 2 * edge + pool as usize + DEDICATED_CONNECTIONS + RESERVED_FILES;
                assert!(taken <= files as usize, "{files} {pool}: {taken}");
            }
        }
    }

    #[test]
    fn a_limit_without_room_for_a_service_is_refused_by_name() {
        let refused = connection_limits_for(Some(256), 16).unwrap_err().to_string();
        assert!(refused.starts_with("RLIMIT_NOFILE is 256"), "{refused}");
    }
}

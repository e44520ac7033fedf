//! The program `contracts`: `apply` creates the topics and registers the schemas, `record` records a changed schema,
//! `asyncapi` describes them all.

use chassis::Subscriptions;
use contracts::Contracts;

/// The events of this repository, and what the service consumes.
fn contracts() -> Contracts {
    let subscriptions = Subscriptions::new([("shop", shop::handlers().topics())]);
    Contracts::new("shop", env!("CARGO_PKG_VERSION"), chassis::event::topics(), subscriptions)
}

fn main() -> std::process::ExitCode {
    contracts().main()
}

#[cfg(test)]
mod tests {
    use contracts::checks;

    use super::*;

    #[test]
    fn the_committed_asyncapi_document_and_the_readers_are_those_of_the_code() {
        let asyncapi = concat!(env!("CARGO_MANIFEST_DIR"), "/asyncapi.json");
        checks::assert_asyncapi_file(&contracts(), asyncapi);
        checks::assert_readers(&contracts());
    }
}

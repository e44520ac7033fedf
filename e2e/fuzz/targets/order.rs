//! Requests to the order service: any bytes on a connection.

#![no_main]

use std::sync::OnceLock;

use fuzz::Server;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    static SERVER: OnceLock<Server> = OnceLock::new();
    let router = |db: sqlx::PgPool, commands| order::api::router(db.clone(), commands, chassis::ChangeFeed::new(db, Default::default(), Default::default()), Vec::new());
    SERVER.get_or_init(|| Server::new(router)).send(bytes);
});

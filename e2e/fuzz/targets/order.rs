//! Requests to the order service: any bytes on a connection.

#![no_main]

use std::sync::OnceLock;

use fuzz::Server;
use libfuzzer_sys::fuzz_target;

// The services are programs, not libraries, so their files are compiled in here.
#[allow(dead_code)]
#[path = "../../../services/order/src/order/mod.rs"]
mod order;
#[allow(dead_code)]
#[path = "../../../services/order/src/saga.rs"]
mod saga;
#[allow(dead_code)]
#[path = "../../../services/order/src/api/mod.rs"]
mod api;

fuzz_target!(|bytes: &[u8]| {
    static SERVER: OnceLock<Server> = OnceLock::new();
    let router = |db: sqlx::PgPool, commands| api::router(db.clone(), commands, chassis::ChangeFeed::new(db, Default::default(), Default::default()));
    SERVER.get_or_init(|| Server::new(router)).send(bytes);
});

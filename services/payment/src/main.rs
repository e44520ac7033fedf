//! The program of the payment service.

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> std::process::ExitCode {
    chassis::main("payment", env!("CARGO_PKG_VERSION"), sqlx::migrate!(), payment::serve)
}

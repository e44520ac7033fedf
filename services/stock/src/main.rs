//! The program of the stock service.

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> std::process::ExitCode {
    chassis::main("stock", env!("CARGO_PKG_VERSION"), sqlx::migrate!(), stock::serve)
}

//! The program of the order service.

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> std::process::ExitCode {
    chassis::main("order", env!("CARGO_PKG_VERSION"), sqlx::migrate!(), order::serve)
}

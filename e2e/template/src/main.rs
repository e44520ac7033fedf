//! The program of the shop service.

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> std::process::ExitCode {
    chassis::main("shop", env!("CARGO_PKG_VERSION"), sqlx::migrate!(), shop::serve)
}

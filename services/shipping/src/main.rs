//! The program of the shipping service.

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> std::process::ExitCode {
    chassis::main("shipping", env!("CARGO_PKG_VERSION"), sqlx::migrate!(), shipping::serve)
}

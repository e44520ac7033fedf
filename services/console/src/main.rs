//! The control room: pages for people who run the stack. It shows what the services report, and passes on what an
//! operator decides. It has no database and no loop of a saga, and asks the services over HTTP alone, so that it
//! works wherever their ports can be reached.
//!
//! # How a page is added
//!
//! A folder is a section of the navigation, such as [`dead_letters`]. [`routes`] joins its handlers, and
//! [`pages::SECTIONS`] names it with its path. What sections share is in [`feeds`].
//! - A handler takes `State(app): State<App>` and [`operators::Operator`], and returns `Result<Response, PageError>`.
//! - `operator.ask(&app.services)` asks a service, with the operator's token.
//! - [`pages::page`] puts the navigation around the `maud` markup of the page.
//! - A form posts to a path below its section; its handler ends in [`pages::redirect`] with a notice. [`protection`]
//!   refuses posts of other sites for every route, so a form needs no token of its own.
//! - There is no inline script and no inline style, since the content policy refuses both. Classes are in
//!   `assets/console.css`; the geometry of an SVG is in its attributes.
//! - A region that changes while a page is open is streamed: [`overview`].

mod app; // what the pages share
mod assets; // the style sheet and the script
mod cookies; // those of a request
mod dead_letters; // what could not be handled, and what an operator does about it
mod demo; // place orders, kill components: only where the launcher says so
mod feeds; // what the pages show of the services, asked for once for all viewers
mod format; // numbers, spans of time and dates for people
mod jobs; // work that takes longer than a request
mod launcher; // what kills and starts the components of a native stack
mod metrics; // what the services report about themselves
mod operators; // who looks: the token of a secured stack
mod order; // an order as its service shows it
mod orders; // where an order is, and which are stuck
mod overview; // the first page, which is live
mod pages; // the frame around each page
mod poller; // the one poller of the services' metrics
mod protection; // hosts, other sites, and the headers of every answer
mod repair; // consumers, republication and the rebuild
mod routes; // every route
mod services; // the services that are asked
mod settings; // the variables
mod sign_in; // the page of the sign-in
mod streams; // regions that change while a page is open
mod traces; // links to a store of traces
mod waiting; // calls to systems outside and tasks for persons

use chassis::Frontend;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> std::process::ExitCode {
    chassis::service::frontend::main("console", serve)
}

async fn serve(frontend: Frontend, settings: settings::Settings) -> anyhow::Result<()> {
    let app = app::App::new(settings, &frontend)?;
    poller::start(&app);
    frontend.run(routes::router(app)).await
}

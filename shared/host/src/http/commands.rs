//! The commands of clients: what the extractor of a request read goes into the queue, and the answer is a response or
//! a [`Problem`].

use std::sync::Arc;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use messaging::commands;
use messaging::commands::command::Command;
use messaging::flow::heartbeat::Heartbeat;
use messaging::flow::wakeups::Wakeups;
use messaging::unit_of_work::UnitOfWork;
use sqlx::PgPool;

use crate::http::idempotent::Idempotent;
use crate::http::problem::Problem;

/// The end of the queue of commands that the API uses.
pub struct Commands<R: UnitOfWork>(commands::Commands<R, Problem>);

/// The end of the queue behind [`Commands`]: it runs the executors, as part of the API loop.
pub type CommandExecutor<R> = commands::CommandExecutor<R, Problem>;

/// Creates both ends of the queue.
pub fn command_channel<R: UnitOfWork>(
    service: &'static str,
    db: PgPool,
    wakeups: Arc<Wakeups>,
    heartbeat: Heartbeat,
) -> (Commands<R>, CommandExecutor<R>) {
    let (commands, executor) = commands::command_channel(service, db, wakeups, heartbeat);
    (Commands(commands), executor)
}

impl<R: UnitOfWork> Clone for Commands<R> {
    fn clone(&self) -> Self {
        Commands(self.0.clone())
    }
}

impl<R: UnitOfWork> Commands<R> {
    /// Runs a command and answers when it is durable or refused, within 12 s in any case.
    ///
    /// # Errors
    /// - The problem of the command's refusal, or 422 if the key was used before for another request.
    /// - 503 `unavailable`, and nothing was stored: 4,096 commands wait already, or no attempt that
    ///   began within 3 s was committed.
    /// - 503 `outcome-unknown`: a commit with its effect was cut and no later attempt settled it, or
    ///   there was no answer within the 12 s.
    /// - 500: [`Command::decide`] panicked, or refused after a change, or the database refuses what it wrote.
    pub async fn execute<C: Command<Aggregate = R, Refusal: Into<Problem>>, K>(
        &self,
        Idempotent { request: command, identity, .. }: Idempotent<C, K>,
    ) -> Result<Reply, Problem> {
        let reply = self.0.execute(command, identity).await?;
        let status = StatusCode::from_u16(reply.status).map_err(|_| Problem::outcome_unknown())?;
        Ok(Reply { status, location: reply.location, body: reply.body })
    }
}

/// The answer to an accepted command.
#[derive(Debug)]
pub struct Reply {
    status: StatusCode,
    location: Option<String>,
    body: Vec<u8>,
}

impl IntoResponse for Reply {
    fn into_response(self) -> Response {
        let json = HeaderValue::from_static("application/json");
        let mut response = (self.status, [(header::CONTENT_TYPE, json)], self.body).into_response();
        if let Some(location) = self.location.and_then(|place| HeaderValue::try_from(place).ok()) {
            response.headers_mut().insert(header::LOCATION, location);
        }
        response
    }
}

//! What the consumer and its batches share.

use std::sync::Arc;

use sqlx::PgPool;

use crate::consumer::router::EventRouter;
use crate::flow::heartbeat::Heartbeat;
use crate::flow::wakeups::Wakeups;
use crate::kafka::schema_registry::SchemaRegistryClient;
use crate::unit_of_work::UnitOfWork;

/// The service's side of a consumer: everything but its Kafka client.
pub struct ConsumerResources<R: UnitOfWork> {
    pub db: PgPool,
    pub registry: Arc<SchemaRegistryClient>,
    pub wakeups: Arc<Wakeups>,
    pub heartbeat: Heartbeat,
    /// That of the scheduler. A service without timers has none.
    pub scheduler_heartbeat: Option<Heartbeat>,
    pub router: Arc<EventRouter<R>>,
}

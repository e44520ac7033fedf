//! Writes the handled positions of partitions while the consumer reads, and detects rewinds.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::consumer::{Consumer as _, StreamConsumer};
use sqlx::PgPool;
use tokio::task::JoinHandle;

use crate::consumer::pause::PAUSE_POLL_INTERVAL;
use crate::consumer::rebalance::GroupContext;
use crate::consumer::{positions, rewind};

const SAVE_INTERVAL: Duration = Duration::from_secs(1);

/// Writes the positions of one client, beside its reading, and looks for rewinds as often as for a pause.
pub(super) struct PositionWriter {
    client: Arc<StreamConsumer<GroupContext>>,
    db: PgPool,
    written_at: Instant,
    rewinds_read_at: Instant,
    writing: Option<JoinHandle<()>>,
}

impl PositionWriter {
    pub fn new(client: Arc<StreamConsumer<GroupContext>>, db: PgPool) -> PositionWriter {
        let now = Instant::now();
        PositionWriter { client, db, written_at: now, rewinds_read_at: now, writing: None }
    }

    /// Begins to write the positions that have risen: once in a while, and at once after partitions were revoked, since
    /// another instance is about to read them.
    pub fn write_if_due(&mut self) {
        let context = self.client.context();
        let is_due = self.written_at.elapsed() >= SAVE_INTERVAL || context.take_revoked();
        if is_due && self.writing.as_ref().is_none_or(JoinHandle::is_finished) {
            self.written_at = Instant::now();
            let reads_rewinds = self.rewinds_read_at.elapsed() >= PAUSE_POLL_INTERVAL;
            if reads_rewinds {
                self.rewinds_read_at = self.written_at;
            }
            let (client, db) = (self.client.clone(), self.db.clone());
            self.writing = Some(tokio::spawn(async move {
                save(&db, client.context()).await;
                if reads_rewinds && let Ok(last) = rewind::last_id(&db).await {
                    client.context().request_rewind(last);
                }
            }));
        }
    }
}

/// Writes the positions of a client that have risen. If the database is away, they are written next time.
pub(super) async fn save(db: &PgPool, context: &GroupContext) {
    let Some(cluster) = context.known_cluster_id() else { return };
    let risen = context.offsets.unsaved();
    if positions::raise(db, cluster, &risen, context.known_rewind()).await.is_ok() {
        context.offsets.record_saved(&risen);
    }
}

//! What it costs to give up an event for ever: said to the operator beforehand, and kept in the
//! books afterwards.
//!
//! Promise: what is written off stands in the books. It is broken by a discard that writes its
//! write-offs in another transaction than its own.

use serde::Serialize;
use sqlx::{PgPool, PgTransaction};

use crate::books::Sum;

/// What it would cost to discard an event, as the service that hears it says: a pure function of the
/// event and the rows it touches.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Loss {
    /// What then never happens, in a sentence or two.
    pub consequence: String,
    /// What may be done about it, by somebody else's API.
    pub offer: Option<Offer>,
    /// What is given up with it. Where there is any, the operator has to say so explicitly.
    pub write_offs: Vec<WriteOff>,
}

/// A request that makes the best of a loss.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Offer {
    /// What it does, in a sentence.
    pub does: String,
    /// The service whose API takes it.
    pub service: &'static str,
    /// The method of the request, which needs no body.
    pub method: &'static str,
    /// The path of the request.
    pub path: String,
}

/// Something of value that is given up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct WriteOff {
    /// What it was.
    pub what: String,
    /// How much of it.
    pub amount: i64,
    /// What the amount counts.
    pub unit: String,
}

impl Loss {
    /// A loss that costs nothing but what the sentence says.
    pub fn that(consequence: impl Into<String>) -> Loss {
        Loss { consequence: consequence.into(), offer: None, write_offs: Vec::new() }
    }

    /// With a `POST` to a service's API that makes the best of it.
    pub fn offering(
        mut self,
        does: impl Into<String>,
        service: &'static str,
        path: impl Into<String>,
    ) -> Loss {
        let (does, path) = (does.into(), path.into());
        self.offer = Some(Offer { does, service, method: "POST", path });
        self
    }

    /// With something of value that is given up.
    pub fn writing_off(
        mut self,
        what: impl Into<String>,
        amount: impl Into<i64>,
        unit: impl Into<String>,
    ) -> Loss {
        let (what, amount, unit) = (what.into(), amount.into(), unit.into());
        self.write_offs.push(WriteOff { what, amount, unit });
        self
    }
}

impl std::fmt::Display for WriteOff {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{} {} ({})", self.amount, self.unit, self.what)
    }
}

/// What was written off of one unit, as the books show it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, sqlx::FromRow)]
pub(crate) struct WrittenOff {
    /// What the amount counts.
    pub unit: String,
    /// The sum.
    pub amount: Sum,
}

/// What the books of this service have to show beside their sums: all that was written off.
pub(crate) async fn written_off(db: &PgPool) -> sqlx::Result<Vec<WrittenOff>> {
    let sums =
        "select unit, sum(amount)::text as amount from write_offs group by unit order by unit";
    sqlx::query_as(sums).fetch_all(db).await
}

/// Enters what is given up with a letter.
pub(crate) async fn write_off(
    tx: &mut PgTransaction<'_>,
    letter_id: i64,
    write_offs: &[WriteOff],
) -> sqlx::Result<()> {
    if write_offs.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "insert into write_offs (letter_id, what, amount, unit)
         select $1, * from unnest($2::text[], $3::bigint[], $4::text[])",
    )
    .bind(letter_id)
    .bind(write_offs.iter().map(|w| w.what.as_str()).collect::<Vec<_>>())
    .bind(write_offs.iter().map(|w| w.amount).collect::<Vec<_>>())
    .bind(write_offs.iter().map(|w| w.unit.as_str()).collect::<Vec<_>>())
    .execute(&mut **tx)
    .await?;
    Ok(())
}

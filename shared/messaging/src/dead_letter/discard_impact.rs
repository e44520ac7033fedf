//! What the discard of a dead letter costs: stated to the operator beforehand, and written off afterwards.

use serde::Serialize;
use utoipa::ToSchema;

/// The consequences of discarding an event, as the subscribing service states them: a pure function of the
/// event and its rows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct DiscardImpact {
    /// What will then never happen, in a sentence or two.
    pub consequence: String,
    /// What may be done about it, by the API of a service.
    #[schema(required)]
    pub remedy: Option<Remedy>,
    /// What is written off with it. If there is any, the operator has to confirm it explicitly.
    pub write_offs: Vec<WriteOff>,
}

/// A request that limits the damage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Remedy {
    /// What it does, in a sentence.
    pub description: String,
    /// The service whose API takes it.
    pub service: &'static str,
    /// The method of the request, which needs no body.
    pub method: &'static str,
    /// The path of the request.
    pub path: String,
}

/// Something of value that is given up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct WriteOff {
    /// What it was.
    pub what: String,
    /// How much of it.
    pub amount: i64,
    /// What the amount counts.
    pub unit: String,
}

impl DiscardImpact {
    /// A consequence without a remedy and without a write-off.
    pub fn new(consequence: impl Into<String>) -> DiscardImpact {
        DiscardImpact { consequence: consequence.into(), remedy: None, write_offs: Vec::new() }
    }

    /// With a `POST` to a service's API that limits the damage.
    pub fn with_remedy(
        mut self,
        description: impl Into<String>,
        service: &'static str,
        path: impl Into<String>,
    ) -> DiscardImpact {
        let (description, path) = (description.into(), path.into());
        self.remedy = Some(Remedy { description, service, method: "POST", path });
        self
    }

    /// With something of value that is given up.
    pub fn with_write_off(
        mut self,
        what: impl Into<String>,
        amount: impl Into<i64>,
        unit: impl Into<String>,
    ) -> DiscardImpact {
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

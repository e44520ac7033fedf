//! The responses that one client received to its order. An outcome is ok, refused or unknown. A
//! client with an unknown outcome repeats its request with the same key until the outcome is
//! settled, and all responses to one key must agree.

use std::time::Duration;

use crate::client::order::Order;
use crate::client::order_plan::OrderPlan;
use crate::client::outcome::{HttpResponse, Outcome};

/// All responses that one client received to its order.
#[derive(Clone, Debug)]
pub struct ClientHistory {
    pub plan: OrderPlan,
    pub attempts: Vec<Attempt>,
    /// The outcome of another request with the same key, if the client sent one.
    pub conflicting: Option<Outcome>,
    pub cancel: CancelOutcome,
}

/// One POST, always with the same key and body.
#[derive(Clone, Debug)]
pub struct Attempt {
    pub outcome: Outcome,
    /// Time since the beginning of the load.
    pub answered_at: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum CancelOutcome {
    NotRequested,
    Accepted,
    TooLate,
    Unknown,
    /// A status that a cancellation never has.
    Unexpected(u16),
}

/// What a client can conclude in the end.
#[derive(Debug, PartialEq)]
pub enum FinalOutcome<'a> {
    Accepted(&'a HttpResponse),
    Refused(&'a HttpResponse),
    Unsettled,
}

impl ClientHistory {
    pub fn new(plan: &OrderPlan, tries: Vec<Attempt>) -> ClientHistory {
        ClientHistory {
            plan: plan.clone(),
            attempts: tries,
            conflicting: None,
            cancel: CancelOutcome::NotRequested,
        }
    }

    pub fn is_settled(&self) -> bool {
        self.final_outcome() != FinalOutcome::Unsettled
    }

    pub fn order(&self) -> Option<Order> {
        match self.final_outcome() {
            FinalOutcome::Accepted(answer) => answer.json().ok(),
            _ => None,
        }
    }

    /// Every acknowledged order: exactly one if keys work.
    pub fn acknowledged_orders(&self) -> impl Iterator<Item = Order> {
        self.acknowledged().into_iter().filter_map(|answer| answer.json().ok())
    }

    /// One acceptance settles the outcome. A 503 means that this attempt stored nothing, which
    /// settles nothing about an attempt without a response.
    pub fn final_outcome(&self) -> FinalOutcome<'_> {
        let (mut refused, mut is_unknown) = (None, false);
        for Attempt { outcome, .. } in &self.attempts {
            match outcome {
                Outcome::Ok(answer) => return FinalOutcome::Accepted(answer),
                Outcome::Refused(answer) if answer.status != 503 => {
                    return FinalOutcome::Refused(answer);
                }
                Outcome::Refused(answer) => refused = Some(answer),
                Outcome::Unknown(_) | Outcome::Failed(_) => is_unknown = true,
            }
        }
        match refused {
            Some(answer) if !is_unknown => FinalOutcome::Refused(answer),
            _ => FinalOutcome::Unsettled,
        }
    }

    fn outcomes(&self) -> impl Iterator<Item = &Outcome> {
        self.attempts.iter().map(|attempt| &attempt.outcome)
    }

    /// Every acceptance.
    pub fn acknowledged(&self) -> Vec<&HttpResponse> {
        let answers = self.outcomes().filter_map(|outcome| match outcome {
            Outcome::Ok(answer) => Some(answer),
            _ => None,
        });
        answers.collect()
    }

    /// The response that contradicts the first acceptance: a different acceptance, or a final refusal. A 503 only means
    /// that its attempt stored nothing.
    pub fn contradiction(&self) -> Option<(&HttpResponse, &HttpResponse)> {
        let acknowledged = self.acknowledged();
        let first = acknowledged.first().copied()?;
        let other = acknowledged.into_iter().find(|answer| *answer != first);
        let refused = || {
            self.outcomes().find_map(|outcome| match outcome {
                Outcome::Refused(answer) if answer.status != 503 => Some(answer),
                _ => None,
            })
        };
        Some((first, other.or_else(refused)?))
    }

    pub fn first_unknown(&self) -> Option<&Outcome> {
        self.outcomes().find(|it| matches!(it, Outcome::Unknown(_) | Outcome::Failed(_)))
    }

    /// A response that a service must never give to any of its requests.
    pub fn failure(&self) -> Option<&HttpResponse> {
        self.outcomes().chain(&self.conflicting).find_map(|outcome| match outcome {
            Outcome::Failed(answer) => Some(answer),
            _ => None,
        })
    }

    pub fn latency(&self) -> Duration {
        self.attempts.first().map_or(Duration::ZERO, |first| first.answered_at - self.plan.due_at)
    }

    pub fn accepted_at(&self) -> Option<Duration> {
        let accepted =
            self.attempts.iter().filter(|attempt| matches!(attempt.outcome, Outcome::Ok(_)));
        accepted.map(|attempt| attempt.answered_at).min()
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn response(status: u16) -> HttpResponse {
        HttpResponse { status, location: None, content_type: String::new(), body: Vec::new() }
    }

    fn history(outcomes: &[Outcome]) -> ClientHistory {
        let plan = OrderPlan {
            due_at: Duration::ZERO,
            key: "key".to_string(),
            customer_id: Uuid::now_v7(),
            lines: Vec::new(),
            cancel_after: None,
            duplicated: false,
            key_reused: false,
            disconnect_after: None,
        };
        let tries = outcomes
            .iter()
            .map(|outcome| Attempt { outcome: outcome.clone(), answered_at: Duration::ZERO });
        ClientHistory::new(&plan, tries.collect())
    }

    #[test]
    fn only_an_acceptance_or_a_final_refusal_settles_an_unknown_outcome() {
        let (ok, later) = (Outcome::Ok(response(201)), Outcome::Refused(response(503)));
        let (no, doubt) = (Outcome::Refused(response(422)), Outcome::Unknown("cut".to_string()));
        let settled = |outcomes: &[&Outcome]| {
            let outcomes: Vec<Outcome> = outcomes.iter().map(|&outcome| outcome.clone()).collect();
            history(&outcomes).is_settled()
        };
        assert!(settled(&[&ok]) && settled(&[&no]) && settled(&[&later]));
        assert!(!settled(&[&doubt]));
        assert!(!settled(&[&doubt, &later]), "a 503 settles nothing about the attempt before it");
        assert!(settled(&[&doubt, &later, &ok]) && settled(&[&doubt, &no]));
        assert!(settled(&[&doubt, &ok, &doubt]), "an acceptance stays true");
    }
}

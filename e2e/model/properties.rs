//! The promises, and the whole space of what can happen to them.

use chassis::Effects;
use events::participants::LegState::{self, *};
use events::participants::PARTICIPANTS;
use order::{Reason, Status};
use stateright::{Model, Property};

use crate::mutants::Mutant;
use crate::promises::*;
use crate::rows::place_order;
use crate::saga::SagaModel;
use crate::world::EventKind::*;
use crate::world::{OrderState, STOCK, Service, Step, World, deliveries, may_refuse_undo};

impl<const N: usize> Model for SagaModel<N> {
    type State = World<N>;
    type Action = (usize, Step);

    /// Every order was just placed, by the real command.
    fn init_states(&self) -> Vec<World<N>> {
        let blank = OrderState {
            status: Status::Pending,
            legs: [Waiting; PARTICIPANTS],
            own: [None; PARTICIPANTS],
            charges: 0,
            refunds: 0,
            held: 0,
            published: 0,
            delivered: 0,
            published_twice: false,
            unprocessable: false,
        };
        let (rows, event) = place_order();
        let placed = self.rules.read_order(blank, &rows, Effects::of(event));
        vec![World { orders: [placed; N], available: self.rules.units }]
    }

    fn actions(&self, world: &World<N>, actions: &mut Vec<(usize, Step)>) {
        for (nth, placed) in world.orders.iter().enumerate() {
            actions.push((nth, Step::Cancel(Reason::Customer)));
            actions.push((nth, Step::Cancel(Reason::Deadline)));
            let owing = (0..PARTICIPANTS).filter(|it| placed.own[*it] == Some(UndoRefused));
            actions.extend(owing.map(|it| (nth, Step::Settle(it))));
            for (to, kind) in deliveries(placed) {
                actions.push((nth, Step::Deliver { to, kind, willing: true }));
                let may_refuse = match (to, kind) {
                    (Service::Participant(_), Created) => true,
                    (Service::Participant(it), Cancelled) => may_refuse_undo(it),
                    _ => false,
                };
                if may_refuse {
                    actions.push((nth, Step::Deliver { to, kind, willing: false }));
                }
                if self.rules.mutant == Some(Mutant::OffsetBeforeCommit) {
                    actions.push((nth, Step::Lose(to, kind)));
                }
            }
        }
    }

    fn next_state(&self, world: &World<N>, (nth, step): (usize, Step)) -> Option<World<N>> {
        let part = (world.orders[nth], world.available);
        let next = self.step(part, step);
        if next == part {
            return None;
        }
        let mut world = world.clone();
        (world.orders[nth], world.available) = next;
        world.orders.sort_unstable_by_key(OrderState::key);
        Some(world)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let owed = Property::sometimes("cancelled with something owed", |_, world: &World<N>| {
            world.orders.iter().any(|placed| placed.legs.contains(&UndoRefused))
        });
        let owed = (0..PARTICIPANTS).any(may_refuse_undo).then_some(owed);
        let promises = vec![
            Property::always(NEVER_NEGATIVE, |_, world: &World<N>| world.available >= 0),
            Property::always(CONSERVED, |saga: &SagaModel<N>, world: &World<N>| {
                let held: i8 = world.orders.iter().map(|placed| placed.held).sum();
                world.available + held == saga.rules.units
            }),
            Property::always(CHARGED_ONCE, |_, world: &World<N>| {
                let mut orders = world.orders.iter();
                orders.all(|placed| placed.charges <= 1 && placed.refunds <= placed.charges)
            }),
            Property::always(HELD_ONCE, |_, world: &World<N>| {
                world.orders.iter().all(|placed| (0..=1).contains(&placed.held))
            }),
            Property::always(ENDS_ONCE, |_, world: &World<N>| world.orders.iter().all(ends_once)),
            Property::always(PUBLISHED_ONCE, |_, world: &World<N>| {
                world.orders.iter().all(|placed| !placed.published_twice)
            }),
            Property::always(NEVER_UNPROCESSABLE, |_, world: &World<N>| {
                world.orders.iter().all(|placed| !placed.unprocessable)
            }),
            Property::always(IN_AGREEMENT, |saga: &SagaModel<N>, world: &World<N>| {
                !saga.is_quiescent(world) || world.orders.iter().all(ends_in_agreement)
            }),
            Property::sometimes("confirmed", |_, world: &World<N>| {
                world.orders.iter().any(|placed| placed.status == Status::Confirmed)
            }),
            Property::sometimes("undone by all participants", |_, world: &World<N>| {
                world.orders.iter().any(|placed| placed.own == [Some(Undone); PARTICIPANTS])
            }),
            Property::sometimes(OVERTAKEN_BY_CANCELLATION, |_, world: &World<N>| {
                world.orders.iter().any(|placed| placed.own == [Some(Void); PARTICIPANTS])
            }),
            Property::sometimes("out of stock", |_, world: &World<N>| {
                world.orders.iter().any(|placed| placed.own[STOCK] == Some(Refused))
            }),
        ];
        promises.into_iter().chain(owed).collect()
    }
}

const OVERTAKEN_BY_CANCELLATION: &str = "cancelled before any participant received it";

fn ends_once(placed: &OrderState) -> bool {
    let ends = placed.published & (Confirmed.bit() | Cancelled.bit());
    ends == match placed.status {
        Status::Pending => 0,
        Status::Confirmed => Confirmed.bit(),
        Status::Cancelled => Cancelled.bit(),
    }
}

pub fn ends_in_agreement(placed: &OrderState) -> bool {
    let done = (placed.charges - placed.refunds.min(placed.charges), placed.held);
    let all = |states: &[LegState]| placed.legs.iter().all(|leg| states.contains(leg));
    placed.own == placed.legs.map(Some)
        && match placed.status {
            Status::Pending => false,
            Status::Confirmed => all(&[Accepted]) && done == (1, 1),
            // What a participant could not undo is owed, until an operator settles it.
            Status::Cancelled => all(&[Refused, Undone, Void, UndoRefused]) && done == (0, 0),
        }
}

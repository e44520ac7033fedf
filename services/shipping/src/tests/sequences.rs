//! Every sequence of what may come, up to some length: whatever is asked and not taken back may be answered in any way,
//! and an answer may come after it was taken back.

use std::collections::BTreeSet;

use chassis::event::{AnsweredTask, Task};
use chassis::{Caller, Command, MakeCall};

use super::*;
use crate::saga::INQUIRIES_MAX;
use crate::{CancelParcel, CancelShipment, Found, LostParcel, NoNews};

/// What is asked, as it is told apart.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Asked {
    Book(i32),
    Find(i32, Option<Uuid>),
    Cancel,
    Lost(bool),
}

/// A shipment, what is pending for it, and what was published.
#[derive(Clone, Debug, PartialEq)]
struct World {
    shipment: Shipment,
    has_timer: bool,
    pending: BTreeSet<Asked>,
    /// What was taken back and may be answered still.
    late: BTreeSet<Asked>,
    booked: u8,
    ended: u8,
}

const NOW: i64 = 10;

/// Of the longest sequences. The next length takes several times as long.
const LENGTH: usize = 8;

fn rows(shipment: &Shipment) -> Shipments {
    let mut rows = no_shipments();
    rows.put(shipment, String::new(), context(NOW));
    rows.history.clear();
    rows
}

impl World {
    /// What a decision leaves behind.
    fn after(&self, rows: &Shipments, wants: Option<Wants>) -> World {
        let mut next = self.clone();
        next.shipment = rows.shipment(ORDER).unwrap().clone();
        for entry in &rows.history {
            assert_eq!(entry.position, 2, "one entry for each decision");
            assert_eq!(entry.state, next.shipment.state);
        }
        next.shipment.last_position = 0;
        let wants = wants.unwrap_or_default();
        next.booked += u8::from(wants.booked.is_some());
        next.ended += u8::from(wants.ended.is_some());
        assert!(wants.timer.is_none() || wants.no_timer.is_none());
        next.has_timer = (next.has_timer || wants.timer.is_some()) && wants.no_timer.is_none();
        let is_taken_back = |asked: &Asked| match asked {
            Asked::Book(_) | Asked::Cancel => wants.nothing_else.is_some(),
            Asked::Find(..) => wants.no_search.is_some(),
            Asked::Lost(_) => wants.no_task.is_some(),
        };
        let (late, pending) =
            std::mem::take(&mut next.pending).into_iter().partition(is_taken_back);
        next.pending = pending;
        let late: BTreeSet<Asked> = late;
        next.late.extend(late);
        next.late.retain(|asked| !next.pending.contains(asked));
        if let Some(asked) = wants.asked.map(|asked| asked_of(&next.shipment, &asked)) {
            next.late.remove(&asked);
            next.pending.insert(asked);
        }
        next
    }

    fn decide<E>(
        &self,
        what: &E,
        handler: fn(&E, &mut Shipments, HandlerContext) -> HandlerResult<Wants>,
    ) -> World {
        let mut rows = rows(&self.shipment);
        let wants = handler(what, &mut rows, context(NOW)).unwrap();
        self.after(&rows, wants)
    }

    /// The answer to what was asked; *unknown* leaves it pending.
    fn without(&self, asked: &Asked) -> World {
        let mut world = self.clone();
        world.pending.remove(asked);
        world.late.remove(asked);
        world
    }

    fn next(&self) -> Vec<World> {
        let mut next = Vec::new();
        for kind in ["parcel.collected", "parcel.delivered", "parcel.lost"] {
            for parcel in [PARCEL, OTHER_PARCEL] {
                let news = serde_json::from_value::<CarrierNews>(news(kind, ORDER, parcel));
                next.push(self.decide(&news.unwrap(), saga::hear));
            }
        }
        if self.has_timer {
            let fired = World { has_timer: false, ..self.clone() };
            next.push(fired.decide(&NoNews { order_id: ORDER }, saga::inquire));
        }
        let mut rows = rows(&self.shipment);
        let cancel = CancelShipment { order_id: ORDER, caller: Caller::unrestricted() };
        if let Ok(accepted) = cancel.decide(&mut rows, context(NOW)) {
            next.push(self.after(&rows, accepted.event));
        }
        for asked in self.pending.union(&self.late) {
            next.extend(self.answers(asked));
        }
        next
    }

    fn answers(&self, asked: &Asked) -> Vec<World> {
        let (order_id, pieces, gone) = (ORDER, 3, self.without(asked));
        match *asked {
            Asked::Book(nth) => {
                let call = || BookParcel { order_id, pieces, nth };
                let known = [done(PARCEL), done(OTHER_PARCEL), refused()];
                let known = known.map(|it| gone.decide(&answered(call(), it), saga::booked));
                let unknown = self.decide(&answered(call(), unknown()), saga::booked);
                known.into_iter().chain([unknown]).collect()
            }
            Asked::Find(bookings, parcel_id) => {
                let found = [
                    parcels(&[]),
                    parcels(&[(PARCEL, ParcelState::Booked)]),
                    parcels(&[(OTHER_PARCEL, ParcelState::Booked)]),
                    parcels(&[(PARCEL, ParcelState::Collected)]),
                    refused(),
                ];
                let call = || FindParcels { order_id, bookings, parcel_id };
                let worlds = found.map(|it| {
                    let world = gone.decide(&answered(call(), it), saga::found);
                    let books = |world: &World| {
                        world.pending.iter().filter(|it| matches!(it, Asked::Book(_))).count()
                    };
                    let is_new = world.shipment.bookings > gone.shipment.bookings;
                    assert!(!is_new || books(&gone) == 0, "one is under way: {gone:?}");
                    world
                });
                worlds.into()
            }
            Asked::Cancel => {
                let call = || CancelParcel { order_id };
                let known = [CallResult::Done(Value::Null), refused()];
                let known = known.map(|it| gone.decide(&answered(call(), it), saga::cancelled));
                let unknown = self.decide(&answered(call(), unknown()), saga::cancelled);
                known.into_iter().chain([unknown]).collect()
            }
            Asked::Lost(is_cancelling) => {
                let task = LostParcel { order_id, is_cancelling };
                let choices = task.question().choices.into_iter();
                let answers = choices.map(|it| serde_json::from_value(json!(it.answer)).unwrap());
                let decide = |answer: Found| {
                    gone.decide(&AnsweredTask { task: task.clone(), answer }, saga::decided)
                };
                answers.map(decide).collect()
            }
        }
    }

    fn assert_kept(&self, before: &World) {
        let (shipment, ended) = (&self.shipment, before.shipment.has_ended());
        assert!(!ended || self == &World { late: self.late.clone(), ..before.clone() }, "it stays");
        assert_eq!(self.ended, u8::from(shipment.has_ended()), "{self:?}");
        assert_eq!(self.booked, u8::from(shipment.booked.is_some()), "{self:?}");
        if shipment.has_ended() {
            assert!(!self.has_timer && self.pending.is_empty(), "something is open: {self:?}");
        } else {
            let person = [true, false].map(Asked::Lost);
            let is_asked = person.iter().any(|task| self.pending.contains(task));
            assert!(self.has_timer, "the clock leads on: {self:?}");
            assert_eq!(
                is_asked,
                shipment.inquiries > INQUIRIES_MAX,
                "a person is asked once: {self:?}"
            );
        }
        let books = self.pending.iter().filter(|it| matches!(it, Asked::Book(_))).count();
        assert!(books <= 1 && (books == 0 || shipment.state == State::Booking), "{self:?}");
        let waits = shipment.state == State::Cancelling;
        assert_eq!(self.pending.contains(&Asked::Cancel), waits, "{self:?}");
    }
}

fn asked_of(shipment: &Shipment, asked: &MakeCall) -> Asked {
    let Shipment { order_id, pieces, bookings: nth, parcel_id, .. } = *shipment;
    let known = [
        (BookParcel { order_id, pieces, nth }.make(), Asked::Book(nth)),
        (FindParcels { order_id, bookings: nth, parcel_id }.make(), Asked::Find(nth, parcel_id)),
        (CancelParcel { order_id }.make(), Asked::Cancel),
        (LostParcel { order_id, is_cancelling: true }.open(), Asked::Lost(true)),
        (LostParcel { order_id, is_cancelling: false }.open(), Asked::Lost(false)),
    ];
    let found = known.into_iter().find(|(call, _)| call == asked);
    found.unwrap_or_else(|| panic!("{asked:?} is none of its calls")).1
}

#[test]
fn whatever_comes_in_any_sequence_a_shipment_ends_once_and_is_never_stuck() {
    let mut rows = no_shipments();
    saga::ship(&confirmed(ORDER, &[3]), &mut rows, context(NOW)).unwrap();
    let shipment = Shipment { last_position: 0, ..rows.shipment(ORDER).unwrap().clone() };
    let pending = BTreeSet::from([Asked::Book(1)]);
    let late = BTreeSet::new();
    let first = World { shipment, has_timer: true, pending, late, booked: 0, ended: 0 };
    let (mut seen, mut open) = (BTreeSet::from([format!("{first:?}")]), vec![first]);
    for _ in 0..LENGTH {
        for world in std::mem::take(&mut open) {
            for next in world.next() {
                next.assert_kept(&world);
                if next.shipment.bookings <= 2 && seen.insert(format!("{next:?}")) {
                    open.push(next);
                }
            }
        }
    }
    assert!(seen.len() > 1_000, "only {} were found", seen.len());
}

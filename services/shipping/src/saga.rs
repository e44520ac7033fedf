//! What confirmed orders, the carrier, the clock, operators and customers cause. Each handler is a pure function from
//! what came and the rows in memory to what is wanted.
//!
//! What the carrier tells comes in any order, late and more than once. A shipment that has ended stays as it is.

use chassis::event::{AnsweredTask, CloseTasks, Refused, Task};
use chassis::{
    Answered, Call, CallResult, CancelTimer, Command, Decision, Event, HandlerContext,
    HandlerResult, MakeCall, Outcome, SetTimer, SettleCalls, Timer, Unprocessable, unprocessable,
};
use events::orders::OrderConfirmed;
use events::shipments::{ShipmentBooked, ShipmentDelivered, ShipmentFailed};
use sqlx::types::Json;
use uuid::Uuid;

use crate::carrier::{
    BookParcel, CancelParcel, CarrierNews, FindParcels, Found, LostParcel, NoNews, ParcelState,
};
use crate::shipment::{
    Booking, CancelShipment, Ended, Published, Reason, Shipment, Shipments, State,
};

/// After so many inquiries without news, a person decides.
pub const INQUIRIES_MAX: i32 = 3;

/// What a decision wants. What it takes back stands before what it asks.
#[derive(Debug, Default, PartialEq, Outcome)]
pub struct Wants {
    pub booked: Option<ShipmentBooked>,
    pub ended: Option<Ended>,
    pub timer: Option<SetTimer>,
    pub no_timer: Option<CancelTimer>,
    pub no_search: Option<SettleCalls>,
    pub no_task: Option<CloseTasks>,
    pub nothing_else: Option<(SettleCalls, SettleCalls)>,
    pub asked: Option<MakeCall>,
}

/// What a handler returns.
type Wanted = HandlerResult<Wants>;

/// A shipment that is decided about.
struct Case<'a> {
    shipment: Shipment,
    shipments: &'a mut Shipments,
    context: HandlerContext,
}

/// `orders.confirmed` → a parcel is booked
pub fn ship(order: &OrderConfirmed, rows: &mut Shipments, context: HandlerContext) -> Wanted {
    let (order_id, customer_id) = (order.order_id, order.customer_id);
    if rows.shipment(order_id).is_some() || order.occurred_at < rows.settings.ship_since {
        return Ok(None); // it was shipped before, or is not to be
    }
    let pieces = order.lines.iter().map(|line| i64::from(line.quantity)).sum();
    if pieces < 1 {
        unprocessable!("order {order_id} has {pieces} pieces");
    }
    let created_at = context.now;
    let shipment = Shipment { order_id, customer_id, pieces, created_at, ..Shipment::default() };
    Ok(Some(Case { shipment, shipments: rows, context }.book("the order is confirmed")))
}

/// What came back of a booking → `shipments.booked` | `shipments.failed` | nothing: the timer leads to an inquiry
pub fn booked(it: &Answered<BookParcel>, rows: &mut Shipments, context: HandlerContext) -> Wanted {
    let mut case = Case::new(it.call.order_id, rows, context)?;
    if case.shipment.state != State::Booking {
        return Ok(None); // the carrier was heard before, or an operator
    }
    let is_last = it.call.nth == case.shipment.bookings;
    Ok(match &it.result {
        CallResult::Done(parcel) | CallResult::DoneLate(parcel) => {
            case.shipment.booking = Booking::Done;
            Some(case.adopt(parcel.parcel_id, State::Booked, "has booked"))
        }
        CallResult::Refused(refused) if is_last => {
            Some(case.fail(Reason::Refused, refusal("to book a parcel", refused)))
        }
        CallResult::Unknown(_) if is_last => {
            case.shipment.booking = Booking::Unknown;
            case.note("it is unknown whether a parcel is booked");
            None
        }
        CallResult::Refused(_) | CallResult::Unknown(_) => None,
    })
}

/// The carrier told nothing for a while → it is asked, and after some inquiries a person is as well
///
/// The timer is set until the shipment has ended: it is what leads on, and news belongs to its trace.
pub fn inquire(due: &NoNews, rows: &mut Shipments, context: HandlerContext) -> Wanted {
    let mut case = Case::new(due.order_id, rows, context)?;
    let Shipment { order_id, bookings, parcel_id, inquiries, state, .. } = case.shipment;
    if case.shipment.has_ended() {
        return Ok(None);
    }
    let timer = Some(case.timer());
    if state == State::Cancelling {
        return Ok(Some(Wants { timer, ..Wants::default() })); // its answer comes first
    }
    if inquiries == INQUIRIES_MAX {
        let asked = case.ask_person("the carrier tells nothing new").unwrap_or_default();
        return Ok(Some(Wants { timer, ..asked }));
    }
    if inquiries < INQUIRIES_MAX {
        case.shipment.inquiries += 1;
        case.note("there is no news: the carrier is asked for its parcels");
    }
    let asked = Some(FindParcels { order_id, bookings, parcel_id }.make());
    let no_search = Some(FindParcels::settle(order_id));
    Ok(Some(Wants { timer, no_search, asked, ..Wants::default() }))
}

/// The parcels that the carrier has → as if it had told of the one that is farthest
///
/// If it has none, a booking that it said was done is repeated, and a person decides about any other.
pub fn found(it: &Answered<FindParcels>, rows: &mut Shipments, context: HandlerContext) -> Wanted {
    let Answered { call, result } = it;
    let case = Case::new(call.order_id, rows, context)?;
    let (CallResult::Done(found) | CallResult::DoneLate(found)) = result else {
        return Ok(None); // the timer leads to the next inquiry, which takes this one back
    };
    let Shipment { state, booking, bookings, parcel_id, .. } = case.shipment;
    let there = found.parcels.iter().filter(|parcel| parcel.state != ParcelState::Other);
    let there = there.max_by_key(|it| (it.state, Some(it.parcel_id) == parcel_id, it.parcel_id));
    Ok(match (there, state) {
        (Some(parcel), _) => case.advance(parcel.parcel_id, parcel.state),
        // A parcel was booked after it was asked.
        _ if (call.bookings, call.parcel_id) != (bookings, parcel_id) => None,
        (None, State::Booked) if booking == Booking::Done => {
            Some(case.book("the carrier has no such parcel"))
        }
        (None, State::Booking) if booking == Booking::Asked => None,
        (None, State::Booking | State::Booked) => case.ask_person("the carrier has no parcel"),
        (None, _) => None,
    })
}

/// News of the carrier → `shipments.delivered` | `shipments.failed` | nothing, and `shipments.booked` if it was not
/// published before
pub fn hear(news: &CarrierNews, rows: &mut Shipments, context: HandlerContext) -> Wanted {
    let Some((parcel, is)) = news.told() else { return Ok(None) };
    Ok(Case::new(parcel.reference, rows, context)?.advance(parcel.parcel_id, is))
}

/// Why a command is refused.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Refusal {
    NoSuchShipment,
    NotBooked,
    TooLate,
}

/// Cancels a shipment that is booked and not collected → the carrier is asked
impl Command for CancelShipment {
    type Aggregate = Shipments;
    type Output = Shipment;
    type Event = Wants;
    type Refusal = Refusal;

    fn decide(&self, rows: &mut Shipments, context: HandlerContext) -> Decision<Self> {
        let order_id = self.order_id;
        let case = Case::new(order_id, rows, context).ok();
        let case = case.filter(|case| self.caller.owns(case.shipment.customer_id));
        let mut case = case.ok_or(Refusal::NoSuchShipment)?;
        match case.shipment.state {
            State::Booked => {}
            State::Booking => return Err(Refusal::NotBooked),
            State::Cancelling | State::Cancelled => return Ok(Self::ok(case.shipment)),
            State::Collected | State::Delivered | State::Failed => return Err(Refusal::TooLate),
        }
        (case.shipment.state, case.shipment.inquiries) = (State::Cancelling, 0);
        case.note("the carrier is asked to cancel");
        let asked = Some(CancelParcel { order_id }.make());
        let wants = Wants { asked, ..Wants::no_search(order_id) };
        Ok(Self::ok(case.shipment).publishing(Some(wants)))
    }
}

/// What came back of a cancellation → `shipments.failed` | nothing: the shipment continues, or a person decides
pub fn cancelled(
    it: &Answered<CancelParcel>,
    rows: &mut Shipments,
    context: HandlerContext,
) -> Wanted {
    let case = Case::new(it.call.order_id, rows, context)?;
    let is_cancelling = case.shipment.state == State::Cancelling;
    Ok(match &it.result {
        _ if case.shipment.has_ended() => None,
        CallResult::Done(_) | CallResult::DoneLate(_) => {
            Some(case.fail(Reason::Cancelled, "the carrier has cancelled the parcel".into()))
        }
        CallResult::Refused(refused) if is_cancelling => {
            Some(case.wait(&refusal("to cancel", refused)))
        }
        CallResult::Unknown(_) if is_cancelling => {
            case.ask_person("it is unknown whether the parcel is cancelled")
        }
        CallResult::Refused(_) | CallResult::Unknown(_) => None,
    })
}

/// A person has decided → the timer, `shipments.failed` or another booking
pub fn decided(
    AnsweredTask { task, answer }: &AnsweredTask<LostParcel>,
    rows: &mut Shipments,
    context: HandlerContext,
) -> Wanted {
    let mut case = Case::new(task.order_id, rows, context)?;
    let is_cancelling = case.shipment.state == State::Cancelling;
    if case.shipment.has_ended() || task.is_cancelling != is_cancelling {
        return Ok(None); // what was asked is decided
    }
    case.shipment.inquiries = 0;
    let reason = if is_cancelling { Reason::Cancelled } else { Reason::GivenUp };
    Ok(Some(match answer {
        Found::Wait => case.wait("an operator: it continues"),
        Found::Failed => case.fail(reason, "an operator: it has ended".into()),
        Found::BookAgain => case.book("an operator: it is booked again"),
    }))
}

fn refusal(what: &str, Refused { status, detail }: &Refused) -> String {
    format!("the carrier refuses {what}: {status} {detail}")
}

fn published<E>(event_id: Uuid, event: E) -> Json<Published<E>> {
    Json(Published { event_id, event })
}

impl Wants {
    /// The carrier and a person need not search any more.
    pub(crate) fn no_search(order_id: Uuid) -> Wants {
        let no_search = Some(FindParcels::settle(order_id));
        Wants { no_search, no_task: Some(LostParcel::close(order_id)), ..Wants::default() }
    }

    /// Nothing that was asked before is open any more.
    pub(crate) fn nothing_else(order_id: Uuid) -> Wants {
        let nothing_else = Some((BookParcel::settle(order_id), CancelParcel::settle(order_id)));
        Wants { nothing_else, ..Wants::no_search(order_id) }
    }
}

impl<'a> Case<'a> {
    /// The case of a shipment. What is too early for it is tried again for a while.
    fn new(
        order_id: Uuid,
        shipments: &'a mut Shipments,
        context: HandlerContext,
    ) -> Result<Case<'a>, Unprocessable> {
        let Some(shipment) = shipments.shipment(order_id).cloned() else {
            unprocessable!("there is no shipment of order {order_id}");
        };
        Ok(Case { shipment, shipments, context })
    }

    /// Stores the shipment as it is now.
    fn note(&mut self, what: impl Into<String>) {
        self.shipment = self.shipments.put(&self.shipment, what.into(), self.context);
    }

    /// The timer that is due if the carrier tells nothing.
    fn timer(&self) -> SetTimer {
        NoNews { order_id: self.shipment.order_id }
            .at(self.context.now + self.shipments.settings.news_after)
    }

    /// Asks the carrier for a parcel, in place of any earlier one.
    fn book(mut self, why: &str) -> Wants {
        let Shipment { order_id, pieces, bookings, .. } = self.shipment;
        let (state, booking, nth) = (State::Booking, Booking::Asked, bookings + 1);
        self.shipment = Shipment {
            state,
            booking,
            bookings: nth,
            parcel_id: None,
            inquiries: 0,
            ..self.shipment
        };
        self.note(format!("{why}: a parcel is booked"));
        let asked = Some(BookParcel { order_id, pieces, nth }.make());
        Wants { timer: Some(self.timer()), asked, ..Wants::nothing_else(order_id) }
    }

    /// A parcel is so far at the carrier. A repeat has no effect, and neither has what is behind the shipment.
    fn advance(mut self, parcel_id: Uuid, is: ParcelState) -> Option<Wants> {
        let Shipment { state, bookings, parcel_id: known, .. } = self.shipment;
        if self.shipment.has_ended() {
            return None;
        }
        Some(match (is, state) {
            (ParcelState::Delivered, _) => self.adopt(parcel_id, State::Delivered, "has delivered"),
            (ParcelState::Lost, _) if known.map_or(bookings > 1, |known| known != parcel_id) => {
                self.note(format!("the carrier has lost parcel {parcel_id}, which was replaced"));
                return None;
            }
            (ParcelState::Lost, _) => {
                self.fail(Reason::Lost, format!("the carrier has lost parcel {parcel_id}"))
            }
            (_, State::Collected) | (ParcelState::Booked, State::Cancelling) => return None,
            (ParcelState::Collected, _) => self.adopt(parcel_id, State::Collected, "has collected"),
            (ParcelState::Booked, _) if known == Some(parcel_id) => return None,
            (ParcelState::Booked, _) => self.adopt(parcel_id, State::Booked, "has"),
            (ParcelState::Other, _) => return None,
        })
    }

    /// The carrier has a parcel → `shipments.booked`, the first time, and `shipments.delivered` at the end
    fn adopt(mut self, parcel_id: Uuid, state: State, has: &str) -> Wants {
        let (order_id, occurred_at) = (self.shipment.order_id, self.context.now);
        if (self.shipment.state, self.shipment.booking) == (State::Booking, Booking::Asked) {
            self.shipment.booking = Booking::Unknown; // its call is taken back
        }
        let mut wants = Wants::nothing_else(order_id);
        self.shipment.inquiries = 0;
        (self.shipment.state, self.shipment.parcel_id) = (state, Some(parcel_id));
        if self.shipment.booked.is_none() {
            let booked = ShipmentBooked { order_id, parcel_id, occurred_at };
            self.shipment.booked = Some(published(self.context.id_of(&booked), booked.clone()));
            wants.booked = Some(booked);
        }
        if state == State::Delivered {
            let event = ShipmentDelivered { order_id, parcel_id, occurred_at };
            self.end(&mut wants, &event, Ended::Delivered(event.clone()));
        } else {
            wants.timer = Some(self.timer());
        }
        self.note(format!("the carrier {has} parcel {parcel_id}"));
        wants
    }

    /// It is not delivered → `shipments.failed`
    fn fail(mut self, reason: Reason, why: String) -> Wants {
        let (order_id, occurred_at) = (self.shipment.order_id, self.context.now);
        let is_cancelled = reason == Reason::Cancelled;
        self.shipment.state = if is_cancelled { State::Cancelled } else { State::Failed };
        self.shipment.reason = Some(reason);
        let (mut wants, event) = (
            Wants::nothing_else(order_id),
            ShipmentFailed { order_id, reason: reason.into(), occurred_at },
        );
        self.end(&mut wants, &event, Ended::Failed(event.clone()));
        self.note(why);
        wants
    }

    fn end<E: Event>(&mut self, wants: &mut Wants, event: &E, ended: Ended) {
        self.shipment.ended = Some(published(self.context.id_of(event), ended.clone()));
        wants.ended = Some(ended);
        wants.no_timer = Some(NoNews::cancel(self.shipment.order_id));
    }

    /// The shipment continues, also if the carrier was asked to cancel it. Its timer is set.
    fn wait(mut self, why: &str) -> Wants {
        let order_id = self.shipment.order_id;
        let is_cancelling = self.shipment.state == State::Cancelling;
        self.shipment.inquiries = 0;
        if is_cancelling {
            self.shipment.state = State::Booked;
        }
        self.note(why);
        if is_cancelling { Wants::nothing_else(order_id) } else { Wants::no_search(order_id) }
    }

    /// A person is to find out, unless one is asked already. The carrier is asked as well, and may be quicker.
    fn ask_person(mut self, why: &str) -> Option<Wants> {
        let Shipment { order_id, state, inquiries, .. } = self.shipment;
        if inquiries > INQUIRIES_MAX {
            return None;
        }
        self.shipment.inquiries = INQUIRIES_MAX + 1;
        self.note(format!("{why}: an operator is asked"));
        let asked = Some(LostParcel { order_id, is_cancelling: state == State::Cancelling }.open());
        Some(Wants { asked, ..Wants::no_search(order_id) })
    }
}

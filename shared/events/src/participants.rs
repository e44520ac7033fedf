//! The participants of an order: the services whose yes an order needs. Everything that knows them reads this list.
//!
//! A participant answers `orders.created` once, with a yes or a no. It answers `orders.cancelled` once, unless its answer
//! was a no: it has undone what it did for the order, if it did anything. Where an undo may fail, it may also answer that it
//! could not. The order then stays cancelled with something owed, until an operator settles that with the participant, which
//! answers that it is undone.

use chassis::event::{Event, Topic};

use crate::payments::{PaymentDeclined, PaymentRefunded, PaymentVerified};
use crate::stock::{StockRejected, StockReleased, StockReserved};

/// A service whose yes an order needs, with its three answers.
pub trait Participant: 'static {
    /// Its name: also that of its column and of its field in the API of the order service.
    const SERVICE: &'static str;
    /// Yes: it took what the order needs.
    type Accepted: Event;
    /// No: it took nothing.
    type Refused: Event;
    /// The order was cancelled, and it has undone what it did.
    type Undone: Event;

    /// The order was cancelled, and it could not undo what it did; `None` if its undo never fails.
    fn undo_refused() -> Option<&'static Topic> {
        None
    }
}

/// Takes the money.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Payment {}

impl Participant for Payment {
    const SERVICE: &'static str = "payment";
    type Accepted = PaymentVerified;
    type Refused = PaymentDeclined;
    type Undone = PaymentRefunded;
}

/// Reserves the items.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stock {}

impl Participant for Stock {
    const SERVICE: &'static str = "stock";
    type Accepted = StockReserved;
    type Refused = StockRejected;
    type Undone = StockReleased;
}

/// How many there are.
pub const PARTICIPANTS: usize = 2;

/// So many of the first ones are asked by every order. The others joined later, and an order names those that it asks:
/// [`crate::orders::OrderCreated::also_asks`].
pub const ASKED_BY_EVERY_ORDER: usize = 2;

/// The participants, in the order in which an order shows their legs.
pub fn participants() -> [Answers; PARTICIPANTS] {
    [Answers::of::<Payment>(), Answers::of::<Stock>()]
}

/// The state of a leg before its participant has answered.
pub const WAITING: &str = "waiting";

/// The state of a leg whose participant received the cancellation before the order: there was nothing to undo.
pub const VOID: &str = "void";

/// The state of a leg, for the rules. Columns, clients and the history have it in the participant's own word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LegState {
    /// There is no answer yet.
    Waiting,
    /// Yes.
    Accepted,
    /// No.
    Refused,
    /// What the yes did is undone.
    Undone,
    /// There was nothing to undo.
    Void,
    /// What the yes did could not be undone, and an operator has not settled it yet.
    UndoRefused,
}

impl LegState {
    /// Those that every leg can have. [`LegState::UndoRefused`] is one more for a participant whose undo may fail.
    pub const COMMON: [LegState; 5] = [
        LegState::Waiting,
        LegState::Accepted,
        LegState::Refused,
        LegState::Undone,
        LegState::Void,
    ];

    /// Those that the leg of this participant can have, with its words.
    pub fn words<P: Participant>() -> impl Iterator<Item = (LegState, &'static str)> {
        let refuses = P::undo_refused().map(|_| LegState::UndoRefused);
        LegState::COMMON.into_iter().chain(refuses).map(|state| (state, state.word::<P>()))
    }

    /// The participant's word.
    pub fn word<P: Participant>(self) -> &'static str {
        match self {
            LegState::Waiting => WAITING,
            LegState::Accepted => leg_state(P::Accepted::topic()),
            LegState::Refused => leg_state(P::Refused::topic()),
            LegState::Undone => leg_state(P::Undone::topic()),
            LegState::Void => VOID,
            LegState::UndoRefused => P::undo_refused().map_or("undo_refused", leg_state),
        }
    }
}

/// The topics of a participant's answers. After an answer, the leg of the order has the state that the topic's name says
/// after its dot.
#[derive(Clone, Copy, Debug)]
pub struct Answers {
    /// The participant.
    pub service: &'static str,
    /// Its yes.
    pub accepted: &'static Topic,
    /// Its no.
    pub refused: &'static Topic,
    /// Its answer to a cancellation.
    pub undone: &'static Topic,
    /// Its other answer to a cancellation, if its undo may fail.
    pub undo_refused: Option<&'static Topic>,
}

impl Answers {
    /// The answers of a participant.
    pub fn of<P: Participant>() -> Answers {
        Answers {
            service: P::SERVICE,
            accepted: P::Accepted::topic(),
            refused: P::Refused::topic(),
            undone: P::Undone::topic(),
            undo_refused: P::undo_refused(),
        }
    }

    /// The topics of all of them.
    pub fn topics(&self) -> impl Iterator<Item = &'static Topic> + use<> {
        [self.accepted, self.refused, self.undone].into_iter().chain(self.undo_refused)
    }
}

/// The state of a leg after an answer: `verified` for `payments.verified`.
pub fn leg_state(answer: &Topic) -> &'static str {
    answer.name.split_once('.').map_or(answer.name, |(_, state)| state)
}

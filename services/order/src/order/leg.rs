//! The legs of an order: what each participant has answered.

use std::borrow::Cow;
use std::marker::PhantomData;

use events::participants::{LegState, Participant, Payment, Stock, leg_state};
use serde::{Serialize, Serializer};
use sqlx::encode::IsNull;
use sqlx::error::BoxDynError;
use sqlx::postgres::{PgArgumentBuffer, PgHasArrayType, PgTypeInfo, PgValueRef};
use sqlx::{Decode, Encode, Postgres, Type};
use utoipa::openapi::schema::{ObjectBuilder, Type as SchemaType};
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

/// The leg of a participant. Columns and clients have its state in the participant's own word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leg<P> {
    pub state: LegState,
    participant: PhantomData<P>,
}

pub type PaymentLeg = Leg<Payment>;
pub type StockLeg = Leg<Stock>;

impl<P> Leg<P> {
    pub const WAITING: Leg<P> = Leg::new(LegState::Waiting);

    pub const fn new(state: LegState) -> Leg<P> {
        Leg { state, participant: PhantomData }
    }

    /// Climbs to the state after an answer, which alone would lead to the state `answer`. A repeated answer changes
    /// nothing, and an undoing may overtake the acceptance that it undoes, or the refusal to undo that was settled. False
    /// if the answers contradict each other.
    pub fn climb(&mut self, answer: LegState) -> bool {
        use LegState::*;
        self.state = match (self.state, answer) {
            (Waiting, _) => answer,
            (Accepted | UndoRefused, Undone) | (Undone, Accepted | UndoRefused) => Undone,
            (Accepted, UndoRefused) | (UndoRefused, Accepted) => UndoRefused,
            (state, _) if state == answer => state,
            _ => return false,
        };
        true
    }
}

impl<P: Participant> Serialize for Leg<P> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.state.word::<P>())
    }
}

impl<P> Type<Postgres> for Leg<P> {
    fn type_info() -> PgTypeInfo {
        <str as Type<Postgres>>::type_info()
    }
}

impl<P> PgHasArrayType for Leg<P> {
    fn array_type_info() -> PgTypeInfo {
        <String as PgHasArrayType>::array_type_info()
    }
}

impl<P: Participant> Encode<'_, Postgres> for Leg<P> {
    fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        <&str as Encode<Postgres>>::encode(self.state.word::<P>(), buffer)
    }
}

impl<P: Participant> Decode<'_, Postgres> for Leg<P> {
    fn decode(value: PgValueRef<'_>) -> Result<Leg<P>, BoxDynError> {
        let word = value.as_str()?;
        let state = LegState::words::<P>().find(|(_, known)| *known == word);
        state
            .map(|(state, _)| Leg::new(state))
            .ok_or_else(|| format!("no leg of {} is {word:?}", P::SERVICE).into())
    }
}

impl<P: Participant> PartialSchema for Leg<P> {
    fn schema() -> RefOr<Schema> {
        let [waiting, accepted, refused, undone, void] = LegState::COMMON.map(LegState::word::<P>);
        let kept = P::undo_refused().map(|topic| format!(" < {}", leg_state(topic)));
        let kept = kept.unwrap_or_default();
        let description = format!(
            "What {} answered. It only climbs: {waiting} < {accepted}{kept} < {undone}, {waiting} < {refused},\n\
             {waiting} < {void}.",
            P::SERVICE
        );
        let words = LegState::words::<P>().map(|(_, word)| word);
        let schema = ObjectBuilder::new().schema_type(SchemaType::String).enum_values(Some(words));
        schema.description(Some(description)).into()
    }
}

impl<P: Participant> ToSchema for Leg<P> {
    fn name() -> Cow<'static, str> {
        let (initial, rest) = P::SERVICE.split_at(1);
        format!("{}{rest}Leg", initial.to_uppercase()).into()
    }
}

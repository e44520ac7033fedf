//! The tokens by which the services of a secured stack know the clients.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use launcher::TokenIssuer;

use crate::client::identity::Identity;

/// Short: a replaced key stays until its last token has ended.
const LIFETIME: Duration = Duration::from_secs(90);

/// A token is not used in the second half of its life: its request may wait for that long.
const USED_FOR: Duration = Duration::from_secs(45);

/// The number of tokens that are kept. A load has no more customers.
const TOKENS_MAX: usize = 10_000;

/// The current token of each client.
pub struct Tokens(Mutex<Signed>);

struct Signed {
    issuer: TokenIssuer,
    tokens: HashMap<Identity, (String, Instant)>,
}

impl Tokens {
    pub fn new(issuer: TokenIssuer) -> Tokens {
        Tokens(Mutex::new(Signed { issuer, tokens: HashMap::new() }))
    }

    /// A token of a client. When another key signs, every client gets a new token.
    pub fn token(&self, identity: Identity) -> Result<String> {
        let mut signed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Signed { issuer, tokens } = &mut *signed;
        if issuer.refresh()? {
            tokens.clear();
        }
        let now = Instant::now();
        if let Some((token, signed_at)) = tokens.get(&identity)
            && now.duration_since(*signed_at) < USED_FOR
        {
            return Ok(token.clone());
        }
        if tokens.len() >= TOKENS_MAX {
            tokens.clear();
        }
        let token = issuer.sign(&identity.subject(), identity.scopes(), LIFETIME)?;
        tokens.insert(identity, (token.clone(), now));
        Ok(token)
    }
}

#[cfg(test)]
mod tests {
    use launcher::{Stack, StackDescription};
    use uuid::Uuid;

    use super::*;
    use crate::stack_description::stack_description;

    #[test]
    fn a_client_keeps_its_token_until_another_key_signs() {
        let secure = StackDescription { secure: true, ..stack_description() };
        let stack = Stack::ephemeral(&secure).unwrap();
        let tokens = Tokens::new(stack.token_issuer().unwrap().unwrap());
        let of = |identity| tokens.token(identity).unwrap();
        let (one, other) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let first = of(Identity::Customer(one));
        assert_eq!(of(Identity::Customer(one)), first);
        assert_ne!(of(Identity::Customer(other)), first);

        stack.announce_token_key().unwrap();
        stack.switch_token_key().unwrap();
        assert_ne!(of(Identity::Customer(one)), first);
    }

    #[test]
    fn the_number_of_kept_tokens_is_bounded() {
        let secure = StackDescription { secure: true, ..stack_description() };
        let stack = Stack::ephemeral(&secure).unwrap();
        let tokens = Tokens::new(stack.token_issuer().unwrap().unwrap());
        for nth in 0..=TOKENS_MAX {
            tokens.token(Identity::Customer(Uuid::from_u128(nth as u128))).unwrap();
        }
        assert_eq!(tokens.0.lock().unwrap().tokens.len(), 1);
    }
}

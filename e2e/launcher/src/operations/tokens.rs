//! The tokens of the callers of a secured stack.

use anyhow::Result;

use crate::secrets::token_issuer::TokenIssuer;
use crate::stack::Stack;

impl Stack {
    /// What signs the tokens by which the services of a secured stack know their callers.
    pub fn token_issuer(&self) -> Result<Option<TokenIssuer>> {
        let state = self.state()?;
        if !state.secure {
            return Ok(None);
        }
        state.secrets()?.token_issuer().map(Some)
    }

    /// Adds a key to those of [`Stack::token_issuer`]. It does not sign yet, so that every service can
    /// read it first.
    pub fn announce_token_key(&self) -> Result<()> {
        self.state()?.secrets()?.announce_token_key()
    }

    /// Lets the announced key sign. Tokens of the other one stay valid.
    ///
    /// # Errors
    /// If no key was announced.
    pub fn switch_token_key(&self) -> Result<()> {
        self.state()?.secrets()?.switch_token_key()
    }

    /// Removes the keys that do not sign, also if their tokens are valid. The services refuse them as soon as they read
    /// the keys again.
    pub fn retire_token_key(&self) -> Result<()> {
        self.state()?.secrets()?.retire_token_key()
    }
}

//! Which participants new orders ask. Every order asks payment and stock. `ORDER_ALSO_ASKS` names those of the participants
//! that joined later, so that one joins and leaves without another program: docs/how-to/add-a-participant.md.

use events::participants::{ASKED_BY_EVERY_ORDER, participants};

/// What new orders ask reads from the environment.
#[derive(clap::Args)]
pub struct Settings {
    /// The participants that new orders ask beside payment and stock, with a comma between two, or none. Unset: all.
    #[arg(long, env, value_parser = parse)]
    order_also_asks: Option<Asked>,
}

/// An empty variable counts as unset, so this is the word for none of them.
const NONE: &str = "none";

#[derive(Clone, Debug, PartialEq)]
struct Asked(Vec<String>);

impl Settings {
    /// The names of these participants, in the order of their legs.
    pub fn also_asks(self) -> Vec<String> {
        let all = || further().map(str::to_owned).collect();
        self.order_also_asks.map_or_else(all, |Asked(names)| names)
    }
}

fn further() -> impl Iterator<Item = &'static str> {
    participants().into_iter().skip(ASKED_BY_EVERY_ORDER).map(|it| it.service)
}

fn parse(list: &str) -> Result<Asked, String> {
    let names: Vec<&str> = list.split(',').map(str::trim).filter(|name| *name != NONE).collect();
    match names.iter().find(|name| !further().any(|known| known == **name)) {
        Some(name) => Err(format!("no participant beside payment and stock is called {name:?}")),
        None => {
            let asked = further().filter(|known| names.contains(known));
            Ok(Asked(asked.map(str::to_owned).collect()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_asks_all_participants_or_those_that_are_named() {
        let all: Vec<&str> = further().collect();
        let asked = |names: &[&str]| Ok(Asked(names.iter().map(|name| name.to_string()).collect()));
        assert_eq!(parse(NONE), asked(&[]));
        assert_eq!(parse(&[&all[..], &[NONE]].concat().join(", ")), asked(&all));
        assert_eq!(Settings { order_also_asks: None }.also_asks(), all);
        for name in ["payment", "stock", "other", ""] {
            let refused = parse(name).unwrap_err();
            assert!(refused.ends_with(&format!("is called {name:?}")), "{refused}");
        }
    }
}

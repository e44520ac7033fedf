//! `#[derive(Event)]`: the one declaration of an event.

use std::path::Path;

use proc_macro2::TokenStream;
use quote::quote;
use syn::ext::IdentExt;
use syn::meta::ParseNestedMeta;
use syn::punctuated::Punctuated;
use syn::{
    Data, DataStruct, DeriveInput, Error, Expr, Fields, Ident, LitInt, LitStr, Result, Token,
    parenthesized,
};

const EXPECTED: &str = "expected `topic = \"…\"`, `publisher = \"…\"`, `key = \"…\"`, `personal(\"…\")`, `compacted`, \
                        `days = …`, `partitions = …`, `read_committed` or `schema = …`";

/// What `#[event(…)]` says.
#[derive(Default)]
struct Declaration {
    topic: Option<LitStr>,
    publisher: Option<LitStr>,
    key: Option<LitStr>,
    schema: Option<Expr>,
    days: Option<LitInt>,
    partitions: Option<LitInt>,
    is_compacted: bool,
    is_read_committed: bool,
    readers: Option<Punctuated<LitStr, Token![,]>>,
}

pub fn expand(input: &DeriveInput) -> Result<TokenStream> {
    let name = &input.ident;
    let declaration = Declaration::read(input)?;
    let missing = || {
        let needed = "an event names its topic, its publisher and the field that is its key: \
                      `#[event(topic = \"…\", publisher = \"…\", key = \"…\")]`";
        Error::new(name.span(), needed)
    };
    let topic = declaration.topic.as_ref().ok_or_else(missing)?;
    let publisher = declaration.publisher.as_ref().ok_or_else(missing)?;
    let key = key_field(input, declaration.key.as_ref().ok_or_else(missing)?)?;
    let settings = declaration.settings()?;
    let schema = match &declaration.schema {
        Some(schema) => quote!(#schema),
        None => schema_file(topic)?,
    };
    let event = quote!(::chassis::event);
    Ok(quote! {
        const _: () = {
            static TOPIC: #event::Topic =
                #event::Topic::new(#topic, #publisher, #schema) #settings;

            #[#event::declared::linkme::distributed_slice(#event::declared::DECLARED)]
            #[linkme(crate = #event::declared::linkme)]
            static DECLARED: #event::DeclaredEvent = #event::DeclaredEvent::new::<#name>(&TOPIC);

            impl #event::Event for #name {
                fn topic() -> &'static #event::Topic {
                    &TOPIC
                }

                fn key(&self) -> ::std::string::String {
                    ::std::string::ToString::to_string(&self.#key)
                }
            }
        };
    })
}

impl Declaration {
    fn read(input: &DeriveInput) -> Result<Declaration> {
        let mut declaration = Declaration::default();
        for attribute in input.attrs.iter().filter(|it| it.path().is_ident("event")) {
            attribute.parse_nested_meta(|meta| declaration.read_part(&meta))?;
        }
        Ok(declaration)
    }

    fn read_part(&mut self, meta: &ParseNestedMeta<'_>) -> Result<()> {
        let name = meta.path.get_ident().map(Ident::to_string).unwrap_or_default();
        let is_repeated = match name.as_str() {
            "topic" => self.topic.replace(meta.value()?.parse()?).is_some(),
            "publisher" => self.publisher.replace(meta.value()?.parse()?).is_some(),
            "key" => self.key.replace(meta.value()?.parse()?).is_some(),
            "schema" => self.schema.replace(meta.value()?.parse()?).is_some(),
            "days" => self.days.replace(meta.value()?.parse()?).is_some(),
            "partitions" => self.partitions.replace(meta.value()?.parse()?).is_some(),
            "compacted" => std::mem::replace(&mut self.is_compacted, true),
            "read_committed" => std::mem::replace(&mut self.is_read_committed, true),
            "personal" => {
                if !meta.input.peek(syn::token::Paren) {
                    let message = "personal data names its readers: `personal(\"…\")`, or \
                                   `personal()` as long as it has none";
                    return Err(meta.error(message));
                }
                let readers;
                parenthesized!(readers in meta.input);
                self.readers.replace(Punctuated::parse_terminated(&readers)?).is_some()
            }
            _ => return Err(meta.error(EXPECTED)),
        };
        match is_repeated {
            true => Err(meta.error("this is given twice")),
            false => Ok(()),
        }
    }

    /// What makes the topic other than a topic of facts about no person.
    fn settings(&self) -> Result<TokenStream> {
        if let (true, Some(days)) = (self.is_compacted, &self.days) {
            return Err(Error::new(days.span(), "a compacted topic keeps its records for ever"));
        }
        let partitions = self.partitions.iter().map(|partitions| quote!(.partitions(#partitions)));
        let days = self.days.iter().map(|days| quote!(.days(#days)));
        let flags = [
            self.is_compacted.then(|| quote!(.compacted())),
            self.is_read_committed.then(|| quote!(.read_committed())),
        ];
        // The last one: it checks how long the records are kept.
        let personal = self.readers.iter().map(|readers| quote!(.personal(&[#readers])));
        Ok(partitions.chain(days).chain(flags.into_iter().flatten()).chain(personal).collect())
    }
}

/// The field that is the key.
fn key_field<'a>(input: &'a DeriveInput, key: &LitStr) -> Result<&'a Ident> {
    if !input.generics.params.is_empty() {
        return Err(Error::new_spanned(&input.generics, "an event has no generic parameters"));
    }
    let Data::Struct(DataStruct { fields: Fields::Named(fields), .. }) = &input.data else {
        return Err(Error::new(input.ident.span(), "an event is a struct with named fields"));
    };
    let mut fields = fields.named.iter().filter_map(|field| field.ident.as_ref());
    fields.find(|field| field.unraw() == key.value()).ok_or_else(|| {
        Error::new(key.span(), format!("{} has no field `{}`", input.ident, key.value()))
    })
}

/// The text of `schemas/<topic>.avsc`, in the folder of the crate or in the nearest folder above it that has the file.
fn schema_file(topic: &LitStr) -> Result<TokenStream> {
    let manifest = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    let file = format!("schemas/{}.avsc", topic.value());
    let mut folders = Path::new(&manifest).ancestors();
    let levels = folders.position(|folder| folder.join(&file).is_file()).ok_or_else(|| {
        Error::new(
            topic.span(),
            format!("write {file} first: neither {manifest} nor a folder above it has the file"),
        )
    })?;
    let path = format!("{}/{file}", "/..".repeat(levels));
    Ok(quote!(::std::include_str!(::std::concat!(::std::env!("CARGO_MANIFEST_DIR"), #path))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expanded(text: &str) -> Result<String> {
        expand(&syn::parse_str(text).unwrap()).map(|tokens| tokens.to_string().replace(' ', ""))
    }

    #[test]
    fn an_event_declares_its_topic_and_registers_it() {
        let text = r#"#[event(topic = "a.paid", publisher = "a", key = "r#type", schema = "x", personal("b", "c"),
                      partitions = 6, days = 7, read_committed)] struct Paid { r#type: String }"#;
        let expanded = expanded(&text.replace("\"r#type\"", "\"type\"")).unwrap();
        for part in [
            r#"Topic::new("a.paid","a","x").partitions(6).days(7).read_committed().personal(&["b","c"])"#,
            "DeclaredEvent::new::<Paid>(&TOPIC)",
            "::to_string(&self.r#type)",
        ] {
            assert!(expanded.contains(part), "{expanded}");
        }
    }

    #[test]
    fn a_schema_lies_in_the_nearest_folder_above_the_crate() {
        let file = schema_file(&syn::parse_str("\"orders.created\"").unwrap()).unwrap().to_string();
        assert!(file.contains("\"/../../schemas/orders.created.avsc\""), "{file}");
    }

    #[test]
    fn what_is_no_event_is_refused_with_the_reason() {
        let named = |rest: &str| {
            format!(
                "#[event(topic = \"a.b\", publisher = \"a\", key = \"id\", schema = \"\")] {rest}"
            )
        };
        for (text, message) in [
            ("#[event(topic = \"a.b\")] struct A { id: i64 }".to_string(), "its publisher and the"),
            (named("enum A { B }"), "a struct with named fields"),
            (named("struct A<T> { id: T }"), "no generic parameters"),
            (named("struct A { other: i64 }"), "A has no field `id`"),
            (named("#[event(key = \"id\")] struct A { id: i64 }"), "given twice"),
            (named("#[event(personal)] struct A { id: i64 }"), "personal data names its readers"),
            (named("#[event(compacted, days = 7)] struct A { id: i64 }"), "for ever"),
            (named("#[event(subscribers = \"b\")] struct A { id: i64 }"), "expected `topic = "),
            (
                named("struct A { id: i64 }").replace(", schema = \"\"", ""),
                "write schemas/a.b.avsc",
            ),
        ] {
            let error = expanded(&text).unwrap_err().to_string();
            assert!(error.contains(message), "{text}: {error}");
        }
    }
}

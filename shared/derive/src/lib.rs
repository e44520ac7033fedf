//! `#[derive(Record)]`: lists the fields of a struct as the columns of a table. What is made of that list is plain
//! Rust, in `shared/chassis/src/unit_of_work/record.rs`; this crate exists because a macro needs one of its own.

#![warn(missing_docs)]

use proc_macro2::TokenStream;
use quote::{quote, quote_spanned};
use syn::ext::IdentExt;
use syn::spanned::Spanned;
use syn::{Data, DeriveInput, Error, Field, Fields, LitStr, Result, parse_macro_input};

/// Implements `chassis::Record`, whose documentation has an example.
///
/// - `#[record(table = "…", key = "…")]` on the struct names the table, and the field that is its key;
/// - `#[record(immutable)]` on a field leaves its column out of updates.
#[proc_macro_derive(Record, attributes(record))]
pub fn derive_record(input: proc_macro::TokenStream) -> proc_macro::TokenStream {
    let input = parse_macro_input!(input as DeriveInput);
    expand(&input).unwrap_or_else(Error::into_compile_error).into()
}

fn expand(input: &DeriveInput) -> Result<TokenStream> {
    let name = &input.ident;
    if !input.generics.params.is_empty() {
        return Err(Error::new(input.generics.span(), "a record has no generic parameters"));
    }
    let fields = match &input.data {
        Data::Struct(data) => match &data.fields {
            Fields::Named(fields) => &fields.named,
            _ => return Err(Error::new(name.span(), "a record has a named field for each column")),
        },
        _ => return Err(Error::new(name.span(), "a record is a struct")),
    };
    let (table, key) = table_and_key(input)?;
    let is_key = |field: &&Field| column_name(field) == key.value();
    let Some(key_field) = fields.iter().find(is_key) else {
        let message = format!("{name} has no field `{}`", key.value());
        return Err(Error::new(key.span(), message));
    };
    let (key_name, key_type) = (&key_field.ident, &key_field.ty);
    let columns = fields.iter().map(|field| column(name, field)).collect::<Result<Vec<_>>>()?;
    let record = quote!(::chassis::unit_of_work::record);
    Ok(quote! {
        impl #record::Record for #name {
            type Key = #key_type;
            const TABLE: &'static str = #table;
            const KEY: &'static str = #key;

            fn key(&self) -> &#key_type {
                &self.#key_name
            }

            fn columns() -> &'static #record::Columns<#name> {
                static COLUMNS: ::std::sync::LazyLock<#record::Columns<#name>> =
                    ::std::sync::LazyLock::new(|| #record::Columns::new([#(#columns),*]));
                &COLUMNS
            }
        }
    })
}

/// The values of `#[record(table = "…", key = "…")]`.
fn table_and_key(input: &DeriveInput) -> Result<(LitStr, LitStr)> {
    let (mut table, mut key) = (None, None);
    for attribute in input.attrs.iter().filter(|it| it.path().is_ident("record")) {
        attribute.parse_nested_meta(|meta| {
            let place = match () {
                () if meta.path.is_ident("table") => &mut table,
                () if meta.path.is_ident("key") => &mut key,
                () => return Err(meta.error("expected `table = \"…\"` or `key = \"…\"`")),
            };
            *place = Some(meta.value()?.parse()?);
            Ok(())
        })?;
    }
    let missing = "a record names its table and its key: `#[record(table = \"…\", key = \"…\")]`";
    table.zip(key).ok_or_else(|| Error::new(input.ident.span(), missing))
}

fn column_name(field: &Field) -> String {
    field.ident.as_ref().map(|name| name.unraw().to_string()).unwrap_or_default()
}

/// A field as a column. If its type cannot be one, the compiler's error points at the type.
fn column(record: &syn::Ident, field: &Field) -> Result<TokenStream> {
    let mut immutable = None;
    for attribute in &field.attrs {
        if attribute.path().is_ident("sqlx") {
            let message = "a record's column has the name of its field: leave out `#[sqlx(…)]`";
            return Err(Error::new(attribute.span(), message));
        }
        if attribute.path().is_ident("record") {
            attribute.parse_nested_meta(|meta| {
                if !meta.path.is_ident("immutable") {
                    return Err(meta.error("expected `immutable`"));
                }
                immutable = Some(quote!(.immutable()));
                Ok(())
            })?;
        }
    }
    let (name, ident) = (column_name(field), &field.ident);
    Ok(quote_spanned! {field.ty.span()=>
        ::chassis::unit_of_work::record::Column::new(#name, |row: &#record| &row.#ident) #immutable
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expanded(text: &str) -> String {
        expand(&syn::parse_str(text).unwrap()).unwrap().to_string().replace(' ', "")
    }

    #[test]
    fn every_field_is_a_column_under_its_name() {
        let text = "#[record(table = \"items\", key = \"sku\")]
                    struct Item { sku: String, #[record(immutable)] r#type: i64 }";
        let expanded = expanded(text);
        for part in [
            "record::RecordforItem{typeKey=String;",
            "constTABLE:&'staticstr=\"items\";constKEY:&'staticstr=\"sku\";",
            "Column::new(\"sku\",|row:&Item|&row.sku),",
            "Column::new(\"type\",|row:&Item|&row.r#type).immutable()]",
        ] {
            assert!(expanded.contains(part), "{part}\n{expanded}");
        }
    }

    #[test]
    fn what_is_no_record_is_refused_with_the_reason() {
        let named = |rest: &str| format!("#[record(table = \"items\", key = \"sku\")] {rest}");
        for (text, message) in [
            ("struct Item { sku: String }".to_string(), "a record names its table"),
            (named("enum Item { Sku }"), "a record is a struct"),
            (named("struct Item(String);"), "a named field for each column"),
            (named("struct Item<T> { sku: T }"), "no generic parameters"),
            (named("struct Item { name: String }"), "Item has no field `sku`"),
            (named("struct Item { #[sqlx(json)] sku: i64 }"), "the name of its field"),
            (named("struct Item { #[record(key)] sku: i64 }"), "expected `immutable`"),
            ("#[record(name = \"a\")] struct Item { a: i64 }".into(), "expected `table = "),
        ] {
            let error = expand(&syn::parse_str(&text).unwrap()).unwrap_err().to_string();
            assert!(error.contains(message), "{text}: {error}");
        }
    }
}

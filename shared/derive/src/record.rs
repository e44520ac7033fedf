use proc_macro2::TokenStream;
use quote::{quote, quote_spanned};
use syn::ext::IdentExt;
use syn::spanned::Spanned;
use syn::{Data, DataStruct, DeriveInput, Error, Field, Fields, Ident, LitStr, Result};

pub(crate) fn expand(input: &DeriveInput) -> Result<TokenStream> {
    let name = &input.ident;
    if !input.generics.params.is_empty() {
        return Err(Error::new_spanned(&input.generics, "a record has no generic parameters"));
    }
    let Data::Struct(DataStruct { fields: Fields::Named(fields), .. }) = &input.data else {
        let message = "a record is a struct with a named field for each column";
        return Err(Error::new_spanned(name, message));
    };
    let (table, key, is_immutable) = attributes(input)?;
    let unknown = || Error::new_spanned(&key, format!("{name} has no field `{}`", key.value()));
    let key_field = fields.named.iter().find(|field| column_name(field) == key.value());
    let Field { ident: key_ident, ty: key_type, .. } = key_field.ok_or_else(unknown)?;
    let columns = fields.named.iter().map(|field| column(name, field, is_immutable));
    let columns = columns.collect::<Result<Vec<_>>>()?;
    let record = quote!(::chassis::unit_of_work::record);
    Ok(quote! {
        impl #record::Record for #name {
            type Key = #key_type;
            const TABLE: &'static str = #table;
            const KEY: &'static str = #key;
            fn key(&self) -> &#key_type {
                &self.#key_ident
            }
            fn columns() -> &'static #record::Columns<#name> {
                static COLUMNS: ::std::sync::LazyLock<#record::Columns<#name>> =
                    ::std::sync::LazyLock::new(|| #record::Columns::new([#(#columns),*]));
                &COLUMNS
            }
        }
    })
}

/// The values of `#[record(table = "…", key = "…")]`, and whether `immutable` follows.
fn attributes(input: &DeriveInput) -> Result<(LitStr, LitStr, bool)> {
    let (mut table, mut key, mut is_immutable) = (None, None, false);
    for attribute in input.attrs.iter().filter(|it| it.path().is_ident("record")) {
        attribute.parse_nested_meta(|meta| {
            let value = match () {
                () if meta.path.is_ident("table") => &mut table,
                () if meta.path.is_ident("key") => &mut key,
                () if meta.path.is_ident("immutable") => {
                    is_immutable = true;
                    return Ok(());
                }
                () => return Err(meta.error("expected `table = \"…\"` or `key = \"…\"`")),
            };
            match value.replace(meta.value()?.parse()?) {
                Some(_) => Err(meta.error("this is given twice")),
                None => Ok(()),
            }
        })?;
    }
    let missing = "a record names its table and its key: `#[record(table = \"…\", key = \"…\")]`";
    let (table, key) = table.zip(key).ok_or_else(|| Error::new_spanned(&input.ident, missing))?;
    Ok((table, key, is_immutable))
}

/// The column of a field, as an expression. It has the span of the field's type, so that the compiler's error points
/// at a type that no column can store.
fn column(record: &Ident, field: &Field, is_immutable: bool) -> Result<TokenStream> {
    let mut immutable = is_immutable.then(|| quote!(.immutable()));
    for attribute in &field.attrs {
        if attribute.path().is_ident("sqlx") {
            let message = "a record's column has the name of its field: leave out `#[sqlx(…)]`";
            return Err(Error::new_spanned(attribute, message));
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

/// The name of a field, without the `r#` of a keyword.
fn column_name(field: &Field) -> String {
    field.ident.as_ref().map(|name| name.unraw().to_string()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use syn::parse_quote;

    use super::*;

    #[test]
    fn every_field_is_a_column_under_its_name() {
        let expanded = expand(&parse_quote! {
            #[record(table = "items", key = "sku")]
            struct Item { sku: String, #[record(immutable)] r#type: i64 }
        });
        let expected = quote! {
            impl ::chassis::unit_of_work::record::Record for Item {
                type Key = String;
                const TABLE: &'static str = "items";
                const KEY: &'static str = "sku";

                fn key(&self) -> &String {
                    &self.sku
                }

                fn columns() -> &'static ::chassis::unit_of_work::record::Columns<Item> {
                    static COLUMNS: ::std::sync::LazyLock<
                        ::chassis::unit_of_work::record::Columns<Item>> =
                    ::std::sync::LazyLock::new(||
                        ::chassis::unit_of_work::record::Columns::new([
                            ::chassis::unit_of_work::record::Column::new(
                                "sku", |row: &Item| &row.sku
                            ),
                            ::chassis::unit_of_work::record::Column::new(
                                "type", |row: &Item| &row.r#type
                            ).immutable()
                        ])
                    );
                    &COLUMNS
                }
            }
        };
        assert_eq!(expanded.unwrap().to_string(), expected.to_string());
    }

    #[test]
    fn every_column_of_an_immutable_record_is_immutable() {
        let expanded = expand(&parse_quote! {
            #[record(table = "deposits", key = "id", immutable)]
            struct Deposit { id: i64, amount: i64 }
        });
        assert_eq!(expanded.unwrap().to_string().matches(". immutable ()").count(), 2);
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
            (named("#[record(key = \"name\")] struct Item { sku: i64 }"), "given twice"),
            ("#[record(name = \"a\")] struct Item { a: i64 }".into(), "expected `table = "),
        ] {
            let error = expand(&syn::parse_str(&text).unwrap()).unwrap_err().to_string();
            assert!(error.contains(message), "{text}: {error}");
        }
    }
}

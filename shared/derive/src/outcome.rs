use proc_macro2::TokenStream;
use quote::quote;
use syn::{Data, DeriveInput, Error, Fields, Result, Type, Variant};

pub(crate) fn expand(input: &DeriveInput) -> Result<TokenStream> {
    let name = &input.ident;
    let (events_max, body) = match &input.data {
        Data::Struct(data) if !data.fields.is_empty() => {
            let events = data.fields.iter().map(|field| events_max(&field.ty));
            let fields = data.fields.iter().zip(data.fields.members());
            let fields = fields.map(|(field, member)| collect(&field.ty, &quote!(self.#member)));
            (quote!(0 #(+ #events)*), quote!(effects.may_hold(Self::EVENTS_MAX); #(#fields;)*))
        }
        Data::Enum(data) => {
            let arms = data.variants.iter().map(arm).collect::<Result<Vec<_>>>()?;
            let events = data.variants.iter().flat_map(|variant| &variant.fields);
            let events = events.map(|field| events_max(&field.ty));
            (quote!(::chassis::event::largest(&[#(#events),*])), quote!(match self { #(#arms),* }))
        }
        _ => return Err(Error::new_spanned(name, "an outcome is an enum or a struct of outcomes")),
    };
    let (generics, arguments, conditions) = input.generics.split_for_impl();
    Ok(quote! {
        impl #generics ::chassis::event::Outcome for #name #arguments #conditions {
            const EVENTS_MAX: usize = #events_max;

            fn collect(self, effects: &mut ::chassis::event::Effects) {
                #body
            }
        }
    })
}

fn arm(variant: &Variant) -> Result<TokenStream> {
    let name = &variant.ident;
    match &variant.fields {
        Fields::Unit => Ok(quote!(Self::#name => {})),
        Fields::Unnamed(fields) if fields.unnamed.len() == 1 => {
            let collect = collect(&fields.unnamed[0].ty, &quote!(outcome));
            Ok(quote!(Self::#name(outcome) => #collect))
        }
        _ => Err(Error::new_spanned(variant, "a variant holds one outcome, or nothing")),
    }
}

/// Names the type, so that the compiler's error points at a type that is no outcome.
fn collect(of: &Type, outcome: &TokenStream) -> TokenStream {
    quote!(<#of as ::chassis::event::Outcome>::collect(#outcome, effects))
}

/// The number of the events of a field, at most.
fn events_max(of: &Type) -> TokenStream {
    quote!(<#of as ::chassis::event::Outcome>::EVENTS_MAX)
}

#[cfg(test)]
mod tests {
    use syn::parse_quote;

    use super::*;

    /// The implementation with this body.
    fn implementation(head: &TokenStream, events: &TokenStream, body: &TokenStream) -> String {
        let expected = quote! {
            #head {
                const EVENTS_MAX: usize = #events;
                fn collect(self, effects: &mut ::chassis::event::Effects) { #body }
            }
        };
        expected.to_string()
    }

    #[test]
    fn an_enum_is_the_outcome_that_its_variant_holds_or_none() {
        let expanded = expand(&parse_quote! {
            enum Answer { Paid(Paid), Both((Paid, Sent)), Silent }
        });
        let expected = implementation(
            &quote!(impl ::chassis::event::Outcome for Answer),
            &quote!(::chassis::event::largest(&[
                <Paid as ::chassis::event::Outcome>::EVENTS_MAX,
                <(Paid, Sent) as ::chassis::event::Outcome>::EVENTS_MAX
            ])),
            &quote! {
                match self {
                    Self::Paid(outcome) =>
                        <Paid as ::chassis::event::Outcome>::collect(outcome, effects),
                    Self::Both(outcome) =>
                        <(Paid, Sent) as ::chassis::event::Outcome>::collect(outcome, effects),
                    Self::Silent => {}
                }
            },
        );
        assert_eq!(expanded.unwrap().to_string(), expected);
    }

    #[test]
    fn a_struct_is_the_outcomes_of_its_fields_in_their_order() {
        for (item, head, first, second) in [
            (
                "struct Both { paid: Paid, sent: Option<Sent> }",
                quote!(impl ::chassis::event::Outcome for Both),
                quote!(self.paid),
                quote!(self.sent),
            ),
            (
                "struct Both<const N: u8>(Paid, Option<Sent>) where Paid: Copy;",
                quote!(impl<const N: u8> ::chassis::event::Outcome for Both<N> where Paid: Copy),
                quote!(self.0),
                quote!(self.1),
            ),
        ] {
            let events = quote!(
                0 + <Paid as ::chassis::event::Outcome>::EVENTS_MAX
                    + <Option<Sent> as ::chassis::event::Outcome>::EVENTS_MAX
            );
            let body = quote! {
                effects.may_hold(Self::EVENTS_MAX);
                <Paid as ::chassis::event::Outcome>::collect(#first, effects);
                <Option<Sent> as ::chassis::event::Outcome>::collect(#second, effects);
            };
            let expanded = expand(&syn::parse_str(item).unwrap()).unwrap().to_string();
            assert_eq!(expanded, implementation(&head, &events, &body));
        }
    }

    #[test]
    fn what_is_no_outcome_is_refused_with_the_reason() {
        let no_outcome = "an outcome is an enum or a struct of outcomes";
        let no_variant = "a variant holds one outcome, or nothing";
        for (text, message) in [
            ("struct Nothing;", no_outcome),
            ("struct Nothing {}", no_outcome),
            ("union Either { a: u8 }", no_outcome),
            ("enum Answer { Both(Paid, Sent) }", no_variant),
            ("enum Answer { Paid { event: Paid } }", no_variant),
            ("enum Answer { Nothing() }", no_variant),
        ] {
            let error = expand(&syn::parse_str(text).unwrap()).unwrap_err().to_string();
            assert_eq!(error, message, "{text}");
        }
    }
}

//! The public surface of the chassis: `public_api.txt` holds every name that a service can use, with
//! its signature, so that a change of the surface is a visible difference. `REWRITE_RATCHETS=1`
//! rewrites the file.

use std::collections::BTreeSet;

use syn::{
    Attribute, Block, Expr, Fields, FieldsNamed, FieldsUnnamed, File, ImplItem, Item, ItemImpl,
    ItemTrait, TraitItem, Type, UseTree, Visibility, parse_quote,
};

use super::{read, root};

const SNAPSHOT: &str = "e2e/tests/structure/public_api.txt";
const SOURCE: &str = "shared/chassis/src";

/// A module of the chassis, such as `db::pool`.
struct Module {
    path: Vec<String>,
    /// Whether every module on its path is public.
    is_public: bool,
    items: Vec<Item>,
}

/// Reads a module and all its children, without tests and hidden modules.
fn read_modules(path: &[String], is_public: bool, found: &mut Vec<Module>) {
    let stem = [&[SOURCE.to_string()], path].concat().join("/");
    let candidates = match path {
        [] => vec![format!("{SOURCE}/lib.rs")],
        _ => vec![format!("{stem}.rs"), format!("{stem}/mod.rs")],
    };
    let file = candidates.into_iter().find(|file| root().join(file).exists());
    let file = file.unwrap_or_else(|| panic!("{stem} has no file"));
    let parsed = syn::parse_file(&read(&file)).unwrap_or_else(|error| panic!("{file}: {error}"));
    let (modules, items): (Vec<Item>, Vec<Item>) =
        parsed.items.into_iter().partition(|item| matches!(item, Item::Mod(_)));
    found.push(Module { path: path.to_vec(), is_public, items });
    for module in modules {
        let Item::Mod(module) = module else { continue };
        if module.content.is_none() && !is_left_out(&module.attrs) {
            let path = [path, &[module.ident.to_string()]].concat();
            read_modules(&path, is_public && is_pub(&module.vis), found);
        }
    }
}

fn is_pub(visibility: &Visibility) -> bool {
    matches!(visibility, Visibility::Public(_))
}

/// Tests, and what is hidden in the documentation.
fn is_left_out(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let tokens = attribute.meta.require_list().map(|list| list.tokens.to_string());
        let is = |name, value| {
            attribute.path().is_ident(name) && tokens.as_ref().is_ok_and(|it| it == value)
        };
        is("cfg", "test") || is("doc", "hidden")
    })
}

/// The paths from the crate's root that a `pub use` exports, such as `db::horizon::Horizon`.
fn exported(tree: &UseTree, prefix: &str, paths: &mut BTreeSet<String>) {
    match tree {
        UseTree::Path(path) if path.ident == "crate" => exported(&path.tree, prefix, paths),
        UseTree::Path(path) => exported(&path.tree, &format!("{prefix}{}::", path.ident), paths),
        UseTree::Name(name) => drop(paths.insert(format!("{prefix}{}", name.ident))),
        UseTree::Rename(rename) => drop(paths.insert(format!("{prefix}{}", rename.ident))),
        UseTree::Group(group) => group.items.iter().for_each(|it| exported(it, prefix, paths)),
        UseTree::Glob(_) => panic!("the chassis exports no glob"),
    }
}

/// The name of a public item that is not an implementation.
fn public_name(item: &Item) -> Option<String> {
    let (visibility, name) = match item {
        Item::Const(it) => (&it.vis, &it.ident),
        Item::Enum(it) => (&it.vis, &it.ident),
        Item::Fn(it) => (&it.vis, &it.sig.ident),
        Item::Static(it) => (&it.vis, &it.ident),
        Item::Struct(it) => (&it.vis, &it.ident),
        Item::Trait(it) => (&it.vis, &it.ident),
        Item::Type(it) => (&it.vis, &it.ident),
        _ => return None,
    };
    is_pub(visibility).then(|| name.to_string())
}

/// The type that an implementation is for.
fn implementor(item: &ItemImpl) -> Option<String> {
    match &*item.self_ty {
        Type::Path(path) => Some(path.path.segments.last()?.ident.to_string()),
        _ => None,
    }
}

/// Keeps the attributes that callers depend on.
fn keep_contract(attributes: &mut Vec<Attribute>) {
    let kept = ["derive", "must_use", "non_exhaustive", "deprecated", "macro_export"];
    attributes.retain(|attribute| kept.iter().any(|name| attribute.path().is_ident(name)));
}

fn keep_public_fields(fields: &mut Fields) {
    if let Fields::Named(FieldsNamed { named: all, .. })
    | Fields::Unnamed(FieldsUnnamed { unnamed: all, .. }) = fields
    {
        *all = std::mem::take(all).into_iter().filter(|field| is_pub(&field.vis)).collect();
    }
    fields.iter_mut().for_each(|field| keep_contract(&mut field.attrs));
}

/// Removes the value of a constant.
fn without_value(value: &mut Expr, attributes: &mut Vec<Attribute>) {
    *value = parse_quote!(_);
    keep_contract(attributes);
}

/// Removes the body of a function.
fn without_body(body: &mut Block, attributes: &mut Vec<Attribute>) {
    *body = parse_quote!({});
    keep_contract(attributes);
}

/// The signatures of a trait, with an empty body for each default.
fn trait_signatures(item: &mut ItemTrait) {
    keep_contract(&mut item.attrs);
    for item in &mut item.items {
        match item {
            TraitItem::Fn(it) => {
                keep_contract(&mut it.attrs);
                if let Some(body) = &mut it.default {
                    without_body(body, &mut Vec::new());
                }
            }
            TraitItem::Const(it) => keep_contract(&mut it.attrs),
            TraitItem::Type(it) => keep_contract(&mut it.attrs),
            _ => {}
        }
    }
}

/// The public functions and constants of a type. Of the implementation of a trait, the trait defines
/// the functions, so only its types remain.
fn impl_signatures(item: &mut ItemImpl) {
    keep_contract(&mut item.attrs);
    let is_of_trait = item.trait_.is_some();
    item.items.retain(|item| match item {
        ImplItem::Const(it) => !is_of_trait && is_pub(&it.vis),
        ImplItem::Fn(it) => !is_of_trait && is_pub(&it.vis) && !is_left_out(&it.attrs),
        ImplItem::Type(_) => true,
        _ => false,
    });
    for item in &mut item.items {
        match item {
            ImplItem::Const(it) => without_value(&mut it.expr, &mut it.attrs),
            ImplItem::Fn(it) => without_body(&mut it.block, &mut it.attrs),
            _ => {}
        }
    }
}

/// The signature of an item, without bodies, values and private parts.
fn signature(mut item: Item) -> Item {
    match &mut item {
        Item::Const(it) => without_value(&mut it.expr, &mut it.attrs),
        Item::Static(it) => without_value(&mut it.expr, &mut it.attrs),
        Item::Fn(it) => without_body(&mut it.block, &mut it.attrs),
        Item::Type(it) => keep_contract(&mut it.attrs),
        Item::Struct(it) => {
            keep_contract(&mut it.attrs);
            keep_public_fields(&mut it.fields);
        }
        Item::Enum(it) => {
            keep_contract(&mut it.attrs);
            for variant in &mut it.variants {
                keep_contract(&mut variant.attrs);
                variant.fields.iter_mut().for_each(|field| keep_contract(&mut field.attrs));
            }
        }
        Item::Trait(it) => trait_signatures(it),
        Item::Impl(it) => impl_signatures(it),
        Item::Macro(it) => {
            keep_contract(&mut it.attrs);
            it.mac.tokens = Default::default();
        }
        _ => {}
    }
    item
}

/// The public items of each module that has any, as Rust source without bodies.
fn surface() -> String {
    let mut modules = Vec::new();
    read_modules(&[], true, &mut modules);
    let mut exports = BTreeSet::new();
    for item in modules.iter().flat_map(|module| &module.items) {
        if let Item::Use(it) = item
            && is_pub(&it.vis)
        {
            exported(&it.tree, "", &mut exports);
        }
    }
    let reachable_name = |module: &Module, item: &Item| {
        let name = public_name(item)?;
        let path = [&module.path[..], std::slice::from_ref(&name)].concat().join("::");
        (module.is_public || exports.contains(&path)).then_some(name)
    };
    let all = modules.iter().flat_map(|module| module.items.iter().map(move |item| (module, item)));
    let types: BTreeSet<String> =
        all.filter_map(|(module, item)| reachable_name(module, item)).collect();
    let mut text = String::new();
    for module in &modules {
        let is_reachable = |item: &&Item| match item {
            Item::Use(it) => module.is_public && is_pub(&it.vis),
            Item::Impl(it) => implementor(it).is_some_and(|name| types.contains(&name)),
            Item::Macro(it) => it.attrs.iter().any(|it| it.path().is_ident("macro_export")),
            item => reachable_name(module, item).is_some(),
        };
        let signatures = module.items.iter().filter(is_reachable).cloned().map(signature);
        let items: Vec<Item> = signatures
            .filter(
                |item| !matches!(item, Item::Impl(it) if it.trait_.is_none() && it.items.is_empty()),
            )
            .collect();
        if !items.is_empty() {
            let file = File { shebang: None, frontmatter: None, attrs: vec![], items };
            let name = [&["chassis".to_string()], &module.path[..]].concat().join("::");
            text += &format!("// {name}\n{}\n", prettyplease::unparse(&file));
        }
    }
    text
}

#[test]
fn the_public_surface_of_the_chassis_is_the_recorded_one() {
    let surface = surface();
    if std::env::var("REWRITE_RATCHETS").is_ok() {
        std::fs::write(root().join(SNAPSHOT), surface).unwrap();
        return;
    }
    let recorded = read(SNAPSHOT);
    let (is, was): (BTreeSet<&str>, BTreeSet<&str>) =
        (surface.lines().collect(), recorded.lines().collect());
    assert!(
        surface == recorded,
        "the surface differs from {SNAPSHOT}; REWRITE_RATCHETS=1 records it\nnew: {:#?}\ngone: {:#?}",
        is.difference(&was).collect::<Vec<_>>(),
        was.difference(&is).collect::<Vec<_>>()
    );
}

//! The files of the library: their length, the length of their functions, and what they import.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use proc_macro2::LineColumn;
use syn::spanned::Spanned;
use syn::visit::{self, Visit};
use syn::{Attribute, Item, UseTree};

/// The maximum number of lines of a file without its tests, and of a function.
const MAX_FILE: usize = 400;
const MAX_FUNCTION: usize = 50;

/// A source file without its tests.
struct File {
    /// The path of its module, such as `machine::model::process`.
    module: String,
    syntax: syn::File,
    text: String,
}

fn files() -> Vec<File> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let paths = rust_files(&src).into_iter();
    let paths = paths.filter(|path| !path.ends_with("tests.rs") && !path.ends_with("testing.rs"));
    let file = |path: PathBuf| {
        let text = fs::read_to_string(&path).unwrap();
        let mut syntax = syn::parse_file(&text).unwrap();
        syntax.items.retain(|item| !is_test(item));
        let path = path.strip_prefix(&src).unwrap().with_extension("");
        let module = path.display().to_string().replace('/', "::");
        File {
            module: module.trim_end_matches("::mod").to_owned(),
            syntax,
            text,
        }
    };
    paths.map(file).collect()
}

pub(super) fn rust_files(path: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(path).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    let files = paths.flat_map(|path| {
        if path.is_dir() {
            rust_files(&path)
        } else {
            vec![path]
        }
    });
    files
        .filter(|path| path.extension().is_some_and(|e| e == "rs"))
        .collect()
}

fn is_test(item: &Item) -> bool {
    let attributes: &[Attribute] = match item {
        Item::Mod(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        _ => &[],
    };
    let is_test = |attribute: &Attribute| {
        let list = attribute.meta.require_list();
        attribute.path().is_ident("cfg") && list.is_ok_and(|list| list.tokens.to_string() == "test")
    };
    attributes.iter().any(is_test)
}

#[test]
fn files_and_functions_are_short() {
    let mut too_long = Vec::new();
    for file in files() {
        let last = file
            .syntax
            .items
            .last()
            .map_or(0, |item| item.span().end().line);
        let lines = last.min(file.text.lines().count());
        if lines > MAX_FILE {
            too_long.push(format!("{}: {lines} lines", file.module));
        }
        let mut functions = Functions::default();
        functions.visit_file(&file.syntax);
        let long = functions
            .0
            .into_iter()
            .filter(|(_, lines)| *lines > MAX_FUNCTION);
        too_long
            .extend(long.map(|(name, lines)| format!("{}::{name}: {lines} lines", file.module)));
    }
    assert!(too_long.is_empty(), "too long: {too_long:#?}");
}

/// The functions of a file, and their numbers of lines.
#[derive(Default)]
struct Functions(Vec<(String, usize)>);

impl Functions {
    fn add(&mut self, name: &syn::Ident, start: LineColumn, end: LineColumn) {
        self.0.push((name.to_string(), end.line - start.line + 1));
    }
}

impl<'ast> Visit<'ast> for Functions {
    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        self.add(
            &item.sig.ident,
            item.sig.span().start(),
            item.block.span().end(),
        );
        visit::visit_item_fn(self, item);
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        self.add(
            &item.sig.ident,
            item.sig.span().start(),
            item.block.span().end(),
        );
        visit::visit_impl_item_fn(self, item);
    }
}

/// The journal has the entries about a machine by the field `VM_NAME`.
#[test]
fn log_entries_that_begin_with_a_machine_have_its_name_as_a_field() {
    let mut without = Vec::new();
    for file in files() {
        let mut entries = Entries::default();
        entries.visit_file(&file.syntax);
        let begins = |text: &String| {
            let starts = ["{vm_name}: ", "{machine}: ", "{name}: ", "{prefix}"];
            starts
                .iter()
                .any(|start| text.contains(&format!("\"{start}")))
        };
        let wrong = entries.0.iter().filter(|text| begins(text));
        let wrong = wrong.filter(|text| !text.contains("vm_name ") && !text.contains("vm_name,"));
        without.extend(wrong.map(|text| format!("{}: {text}", file.module)));
    }
    assert!(without.is_empty(), "without vm_name: {without:#?}");
}

/// The arguments of the macros that log.
#[derive(Default)]
struct Entries(Vec<String>);

impl<'ast> Visit<'ast> for Entries {
    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        let name = call.path.segments.last();
        let name = name.map(|segment| segment.ident.to_string());
        if matches!(name.as_deref(), Some("debug" | "info" | "warn" | "error")) {
            self.0.push(call.tokens.to_string());
        }
    }
}

/// A module uses the files of the items that its `use` lines name, wherever a parent exports them from.
/// A parent that exports the items of its children does not use them.
#[test]
fn files_have_no_import_cycles() {
    let files = files();
    let files = files
        .iter()
        .filter(|file| !file.module.starts_with("bin::"));
    let files: BTreeMap<&str, &File> = files.map(|file| (file.module.as_str(), file)).collect();
    let imports: BTreeMap<&str, BTreeSet<String>> = files
        .values()
        .map(|file| (file.module.as_str(), imports_of(file, &files)))
        .collect();
    let in_cycle = |module: &&&str| {
        let mut reached = BTreeSet::new();
        let mut left: Vec<&str> = imports[**module].iter().map(String::as_str).collect();
        while let Some(next) = left.pop() {
            if reached.insert(next) {
                left.extend(imports.get(next).into_iter().flatten().map(String::as_str));
            }
        }
        reached.contains(**module)
    };
    let cycles: Vec<_> = imports.keys().filter(in_cycle).collect();
    let edges: Vec<_> = cycles
        .iter()
        .map(|module| (module, &imports[**module]))
        .collect();
    assert!(cycles.is_empty(), "in import cycles: {edges:#?}");
}

/// Returns the files that `file` imports from.
fn imports_of(file: &File, files: &BTreeMap<&str, &File>) -> BTreeSet<String> {
    let is_child = |target: &String| target.starts_with(&format!("{}::", file.module));
    let imports = uses(file).into_iter().filter_map(|(path, is_export)| {
        let target = owner(&path, files)?;
        let is_own = target == file.module || (is_export && is_child(&target));
        (!is_own).then_some(target)
    });
    imports.collect()
}

/// Returns the paths that the `use` lines of `file` name, from the root of the crate, and whether they
/// are exported.
fn uses(file: &File) -> Vec<(Vec<String>, bool)> {
    let mut uses = Vec::new();
    for item in &file.syntax.items {
        if let Item::Use(item) = item {
            let is_export = !matches!(item.vis, syn::Visibility::Inherited);
            let mut paths = Vec::new();
            expand(&item.tree, &mut Vec::new(), &mut paths);
            let paths = paths
                .into_iter()
                .map(|path| (absolute(&file.module, path), is_export));
            uses.extend(paths);
        }
    }
    uses
}

/// Adds the paths of `tree`, which follows `prefix`.
fn expand(tree: &UseTree, prefix: &mut Vec<String>, paths: &mut Vec<Vec<String>>) {
    match tree {
        UseTree::Path(path) => {
            prefix.push(path.ident.to_string());
            expand(&path.tree, prefix, paths);
            prefix.pop();
        }
        UseTree::Group(group) => group
            .items
            .iter()
            .for_each(|tree| expand(tree, prefix, paths)),
        UseTree::Name(name) => paths.push([&prefix[..], &[name.ident.to_string()]].concat()),
        UseTree::Rename(name) => paths.push([&prefix[..], &[name.ident.to_string()]].concat()),
        UseTree::Glob(_) => paths.push(prefix.clone()),
    }
}

/// Returns `path`, as `module` names it, from the root of the crate.
fn absolute(module: &str, path: Vec<String>) -> Vec<String> {
    let mut base: Vec<String> = module.split("::").map(str::to_owned).collect();
    let mut path = path.into_iter().peekable();
    match path.peek().map(String::as_str) {
        Some("crate") => {
            path.next();
            base.clear();
        }
        Some("self") => {
            path.next();
        }
        Some("super") => {}
        // A child, or another crate, which has no file here.
        _ => {}
    }
    while path.peek().is_some_and(|part| part == "super") {
        path.next();
        base.pop();
    }
    base.extend(path.filter(|part| part != "self"));
    base
}

/// Returns the file that has the item at `path`: that of the item, even if a parent exports it.
fn owner(path: &[String], files: &BTreeMap<&str, &File>) -> Option<String> {
    let lengths = (1..=path.len()).rev();
    let mut modules = lengths.map(|length| (length, path[..length].join("::")));
    let (length, module) = modules.find(|(_, module)| files.contains_key(module.as_str()))?;
    let exports = path.get(length).and_then(|item| {
        let exports = uses(files[module.as_str()]).into_iter();
        let mut exports =
            exports.filter(|(path, is_export)| *is_export && path.last() == Some(item));
        let (path, _) = exports.next()?;
        owner(&path, files)
    });
    Some(exports.unwrap_or(module))
}

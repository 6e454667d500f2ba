//! The chain of one disk: its images, how they are made, and where their parents come from.

use std::path::{Path, PathBuf};

use super::disks::OneDisk;
use super::server::paths;
use crate::codes;
use crate::diagnostics::Finding;
use crate::plan::{Create, Disk, Format, Layer, Parents, Variant};
use crate::shape::Settings;
use crate::source::{At, Span};

impl OneDisk<'_> {
    /// The layers, base first, and where the file of each was written.
    pub fn layers(&mut self) -> (Vec<Layer>, Vec<Span>) {
        let own = self.own;
        let list: Option<At<Vec<At<Settings>>>> = own.written("layers");
        if let Some(list_span) = own.place("layers") {
            for name in ["file", "format", "create"] {
                if let Some(span) = own.place(name) {
                    let message = format!("disk `{}` has both `{name}` and `layers`", self.name);
                    let help = match name {
                        "file" => "a single image is `file`; a chain is `layers`, base first".to_string(),
                        _ => format!("say `{name}` for each layer that it is about"),
                    };
                    let finding = Finding::new(&codes::FILE_AND_LAYERS, message).at(span, "");
                    self.findings.push(finding.at(list_span, "the chain").help(help));
                }
            }
        } else if !own.has("file") {
            let message = format!("disk `{}` has no image", self.name);
            let help = "add file = \"…\", or layers = [{ file = \"…\" }, …] with the base first";
            self.findings.push(Finding::new(&codes::NO_IMAGE, message).at(own.span, "").help(help));
        }
        match list {
            None => self.layer(self.settings, None).into_iter().unzip(),
            Some(list) => {
                if list.value.is_empty() {
                    let message = format!("disk `{}` has no layers", self.name);
                    self.findings
                        .push(Finding::new(&codes::NO_IMAGE, message).at(list.span, "an empty chain"));
                }
                let mut below = None;
                let mut layers = Vec::new();
                for At { value: settings, span } in &list.value {
                    if !settings.has("file") {
                        let finding = Finding::new(&codes::NO_IMAGE, "a layer without `file`");
                        self.findings.push(finding.at(*span, ""));
                    }
                    layers.extend(self.layer(settings, below));
                    below = settings.place("file").or(Some(*span));
                }
                layers.into_iter().unzip()
            }
        }
    }

    /// One layer from the table that has its `file`, over the one whose place is given.
    fn layer(&mut self, settings: &Settings, below: Option<Span>) -> Option<(Layer, Span)> {
        let format = format(settings);
        if let (Some(raw), Some(below)) = (said_raw(settings), below) {
            self.findings.push(
                Finding::new(&codes::RAW_HAS_NO_PARENT, "a raw image cannot lie over another image")
                    .at(raw, "raw")
                    .at(below, "over this"),
            );
        }
        let create = self.create(settings, format.as_ref(), below);
        let file: At<PathBuf> = settings.written("file")?;
        let format = format.map(|at| at.value).or(create.as_ref().map(|create| create.format));
        Some((Layer { file: file.value, format, create }, file.span))
    }

    fn create(
        &mut self,
        settings: &Settings,
        layer_format: Option<&At<Format>>,
        below: Option<Span>,
    ) -> Option<Create> {
        let place = settings.place("create")?;
        let create: At<Settings> = settings.written("create")?;
        if let (true, Some(read_only)) = (self.settings.value("read_only"), self.settings.place("read_only"))
        {
            self.findings.push(
                Finding::new(&codes::CREATE_READ_ONLY, "`create` on a read-only disk")
                    .at(place, "would stay empty for ever")
                    .at(read_only, "read-only"),
            );
        }
        let create = create.value;
        let size: Option<At<u64>> = create.written("size");
        if size.is_none() && below.is_none() && !create.is_broken("size") {
            let finding = Finding::new(&codes::CREATE_SIZE, "`create` needs a `size`").at(place, "");
            self.findings.push(finding.help("for example size = \"20GiB\""));
        }
        let format = self.create_format(&create, layer_format, settings.is_broken("format"), place);
        let variant = self.create_variant(&create, below);
        Some(Create { size: size.map(|at| at.value), format: format?, variant })
    }

    fn create_format(
        &mut self,
        create: &Settings,
        layer_format: Option<&At<Format>>,
        layer_format_broken: bool,
        place: Span,
    ) -> Option<Format> {
        let format = format(create);
        match (&format, layer_format) {
            (Some(new), Some(said)) if new.value != said.value => {
                let message = format!("`create` makes {} and `format` says {}", new.value, said.value);
                self.findings.push(
                    Finding::new(&codes::CREATE_FORMAT, message)
                        .at(new.span, "")
                        .at(said.span, "of the same file"),
                );
            }
            (None, None) if !create.is_broken("format") && !layer_format_broken => {
                let finding = Finding::new(&codes::CREATE_FORMAT, "`create` needs a `format`").at(place, "");
                self.findings.push(finding.help("for example format = \"vdi\""));
            }
            _ => (),
        }
        format.as_ref().or(layer_format).map(|at| at.value)
    }

    fn create_variant(&mut self, create: &Settings, below: Option<Span>) -> Variant {
        let written = create.written::<String>("variant");
        let variant = written.as_ref().and_then(|at| Variant::from_word(&at.value));
        let fitting = if below.is_some() { Variant::Differencing } else { Variant::Dynamic };
        let (Some(variant), Some(At { span, .. })) = (variant, written) else { return fitting };
        match (variant, below) {
            (Variant::Differencing, None) => self.findings.push(
                Finding::new(&codes::CREATE_VARIANT, "a `differencing` image without a layer below it")
                    .at(span, "differs from nothing")
                    .help("spell the chain out in `layers`, with the parent before this image"),
            ),
            (Variant::Fixed | Variant::Dynamic, Some(below)) => self.findings.push(
                Finding::new(&codes::CREATE_VARIANT, format!("a `{variant}` image cannot have a parent"))
                    .at(span, "")
                    .at(below, "its parent")
                    .help("leave `variant` out, or say \"diff\""),
            ),
            _ => (),
        }
        variant
    }

    /// Where the parents of the first layer come from.
    pub fn parents(&mut self) -> Parents {
        let parents: String = self.settings.value("parents");
        let place = self.settings.place("parents");
        if let Some(layers) = self.own.place("layers") {
            // A default is about disks that have no layers.
            if let (Some(own), "auto") = (self.own.place("parents"), parents.as_str()) {
                self.findings.push(
                    Finding::new(&codes::PARENTS_OF_LAYERS, "`parents = \"auto\"` with `layers`")
                        .at(own, "searches parents")
                        .at(layers, "spells them out"),
                );
            }
            return Parents::Listed;
        }
        let (Some(place), "auto") = (place, parents.as_str()) else { return Parents::None };
        if let Some(raw) = said_raw(self.settings) {
            // A default is about disks that can have parents.
            if self.own.has("parents") {
                self.findings.push(
                    Finding::new(&codes::RAW_HAS_NO_PARENT, "a raw image has no parents to search")
                        .at(raw, "raw")
                        .at(place, "searches parents"),
                );
            }
            return Parents::None;
        }
        if paths(self.server, "image_dirs").is_empty() && !self.server.is_broken("image_dirs") {
            let finding = Finding::new(
                &codes::AUTO_NEEDS_IMAGE_DIRS,
                "`parents = \"auto\"` searches `image_dirs`, which is empty",
            );
            let folder =
                self.own.written::<PathBuf>("file").and_then(|at| at.value.parent().map(Path::to_path_buf));
            let folder = folder.unwrap_or_else(|| "/srv/images".into());
            self.findings.push(
                finding
                    .at(place, "")
                    .help(format!("say in [server]: image_dirs = [{:?}]", folder.to_string_lossy())),
            );
        }
        Parents::Auto
    }

    /// Every file once in the chain, inside `image_dirs`, and raw only where it is said.
    pub fn check_files(&mut self, disk: &Disk, files: &[Span]) {
        let image_dirs = paths(self.server, "image_dirs");
        for (i, (layer, span)) in disk.layers.iter().zip(files).enumerate() {
            let file = layer.file.display();
            if let Some(first) = disk.layers[..i].iter().position(|earlier| earlier.file == layer.file) {
                let message = format!("`{file}` is twice in the chain of disk `{}`", self.name);
                self.findings.push(
                    Finding::new(&codes::FILE_TWICE_IN_CHAIN, message)
                        .at(*span, "again here")
                        .at(files[first], "first here"),
                );
            }
            let inside = |dir: &PathBuf| layer.file.starts_with(dir) && layer.file != *dir;
            if let (false, Some(dirs)) = (image_dirs.iter().any(inside), self.server.place("image_dirs"))
                && !image_dirs.is_empty()
            {
                self.findings.push(
                    Finding::new(&codes::OUTSIDE_IMAGE_DIRS, format!("`{file}` is not inside `image_dirs`"))
                        .at(*span, "")
                        .at(dirs, "the only directories for images"),
                );
            }
        }
        if let (Some(top), Some(span)) = (disk.layers.last(), files.last())
            && disk.writes_top()
            && top.format.is_none()
            && !self.settings.is_broken("format")
            && looks_raw(&top.file)
        {
            self.findings.push(
                Finding::new(&codes::PERHAPS_RAW, "raw is never guessed for an image that is written")
                    .at(*span, "looks raw")
                    .help("say format = \"raw\" if it is"),
            );
        }
    }
}

fn format(settings: &Settings) -> Option<At<Format>> {
    let At { value, span } = settings.written::<String>("format")?;
    Format::from_word(&value).map(|value| At { value, span })
}

/// Where an image is said to be raw, or is to be made so.
fn said_raw(settings: &Settings) -> Option<Span> {
    let create = || settings.written::<Settings>("create").and_then(|at| format(&at.value));
    format(settings).or_else(create).filter(|at| at.value == Format::Raw).map(|at| at.span)
}

fn looks_raw(file: &Path) -> bool {
    let extension = file.extension().map(|extension| extension.to_ascii_lowercase());
    file.starts_with("/dev")
        || extension.is_some_and(|extension| ["raw", "img", "iso"].iter().any(|raw| extension == *raw))
}

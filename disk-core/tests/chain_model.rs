//! Whatever is asked of a chain, it reads what the model says: the same property for a raw image, a VDI, and chains of
//! both, opened anew in between.

use std::sync::Arc;

use disk_core::chain::Chain;
use disk_core::format::Place;
use disk_core::range::ByteRange;
use disk_core::storage::MemStorage;
use disk_core::testing::model::campaign::{self, Figures};
use disk_core::testing::model::images::{self, ChainSpec, Images};
use disk_core::testing::model::request::{Request, Step};
use disk_core::testing::model::target::{Answer, Target, data_of};
use disk_core::testing::model::{Model, SECTOR};
use proptest::prelude::*;
use proptest::strategy::BoxedStrategy;

/// A chain under test and what has happened to it.
struct Trial {
    images: Images,
    /// The top's file.
    file: Arc<MemStorage>,
    chain: Chain,
    model: Model,
    figures: Figures,
}

impl Trial {
    async fn start(spec: &ChainSpec) -> Result<Trial, String> {
        let images = Images::build(spec).await?;
        let file = Arc::new(images.top.snapshot());
        let chain = images.open(file.clone()).await?;
        let model = images.model.clone();
        Ok(Trial { images, file, chain, model, figures: Figures::default() })
    }

    async fn step(&mut self, step: &Step, serial: u32) -> Result<(), String> {
        self.figures.operations += 1;
        match step {
            Step::One(request) => self.ask(request, serial).await?,
            Step::Together(_) => unreachable!("a chain has no turns"),
            Step::Compact => self.compact().await?,
            Step::Settle => self.settle().await?,
            Step::Reopen { clean } => {
                if *clean {
                    self.settle().await?;
                }
                // The old process may still be there, but its file is not ours any more.
                self.file = Arc::new(self.file.snapshot());
                self.chain = self.images.open(self.file.clone()).await?;
                self.figures.reopens += 1;
                self.inspect().await?;
            }
        }
        if serial.is_multiple_of(16) { self.inspect().await } else { Ok(()) }
    }

    async fn ask(&mut self, request: &Request, serial: u32) -> Result<(), String> {
        if let Request::Status { range, .. } = request {
            self.read(*range).await?;
        }
        let data = data_of(&self.chain, request, serial, &self.images.model).await?;
        let answer = self.chain.ask(request, data.clone()).await;
        self.model.judge(request, &data, &answer)?;
        match (request, answer) {
            (Request::Zero { range, how, .. }, Ok(_)) if !how.may_free => self.is_allocated(*range)?,
            (Request::Zero { range, .. }, Err(_)) => self.read(*range).await?,
            _ => {}
        }
        match request {
            Request::Write { range, .. } | Request::Zero { range, .. } | Request::Discard { range, .. } => {
                // With the sectors around it.
                let around = ByteRange::new(range.start().saturating_sub(SECTOR), range.end() + SECTOR);
                self.read(ByteRange::new(0, self.chain.size()).intersect(&around)).await
            }
            _ => Ok(()),
        }
    }

    async fn read(&mut self, range: ByteRange) -> Result<(), String> {
        let request = Request::Read(range);
        let answer = self.chain.ask(&request, disk_core::buf::Buf::copy_from(&[])).await;
        self.model.judge(&request, &[], &answer)
    }

    /// What was zeroed without leave to free it has its space.
    fn is_allocated(&self, range: ByteRange) -> Result<(), String> {
        let mut rest = range;
        while !rest.is_empty() {
            let mapping = self.chain.top().lookup(rest);
            if !matches!(mapping.place, Place::Data(_)) {
                return Err(format!("{rest} of {range} has no space after it was zeroed to keep it"));
            }
            (_, rest) = rest.split_at(mapping.len);
        }
        Ok(())
    }

    async fn compact(&mut self) -> Result<(), String> {
        for _ in 0..3 {
            let blocks = self.chain.top().compactable();
            if blocks.is_empty() {
                break;
            }
            self.chain.top().compact(&blocks).await.map_err(|error| format!("compacting: {error}"))?;
        }
        Ok(())
    }

    async fn settle(&mut self) -> Result<(), String> {
        self.chain.top().settle().await.map_err(|error| format!("settling: {error}"))
    }

    async fn inspect(&mut self) -> Result<(), String> {
        self.figures.inspections += 1;
        self.images.inspect(&self.chain, &self.file, &mut self.model).await?;
        let answer = self.chain.ask(&Request::Flush, disk_core::buf::Buf::copy_from(&[])).await;
        if answer.as_ref().ok() == Some(&Answer::Done) { Ok(()) } else { Err(format!("flush: {answer:?}")) }
    }
}

fn property(name: &str, cases: u32, chains: BoxedStrategy<ChainSpec>) -> Figures {
    let strategy = chains.prop_flat_map(|spec| {
        let shape = spec.images.last().expect("a chain has at least a base").shape(SECTOR);
        (Just(spec), prop::collection::vec(shape.steps(), 1..100))
    });
    campaign::run(name, cases, &strategy, |(spec, steps)| {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(async {
            let mut trial = Trial::start(&spec).await?;
            for (serial, step) in (1..).zip(&steps) {
                trial
                    .step(step, serial)
                    .await
                    .map_err(|wrong| format!("step {serial}, {step:?}: {wrong}"))?;
            }
            trial.inspect().await?;
            Ok(trial.figures)
        })
    })
}

#[test]
fn a_raw_image_reads_what_the_model_says() {
    let figures = property("raw", 60, images::raw());
    assert!(figures.operations > 1000 && figures.reopens > 20, "{figures}");
}

#[test]
fn a_vdi_reads_what_the_model_says() {
    let figures = property("vdi", 150, images::vdi());
    assert!(figures.operations > 3000 && figures.reopens > 60, "{figures}");
}

#[test]
fn a_chain_reads_what_the_model_says() {
    let figures = property("chain", 250, images::chain());
    assert!(figures.operations > 5000 && figures.reopens > 100, "{figures}");
}

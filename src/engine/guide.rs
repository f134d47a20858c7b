//! A sequence's constraint while it runs: its next mask is computed on other threads while the model
//! computes the logits that it will be laid over.

use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex, OnceLock};

use rayon::ThreadPool;

use crate::prompt::{self, Grammars, Mask, PromptError, TextModel};
use crate::sampling::Sampling;

/// Makes guides, and computes their masks.
pub(super) struct Guides {
    text: Arc<TextModel>,
    vocabulary: usize,
    eos: Arc<[u32]>,
    /// Only jobs with constraints pay for it.
    made: OnceLock<(Arc<Grammars>, ThreadPool)>,
    threads: usize,
}

/// A sequence's place in its constraint.
pub(super) struct Guide {
    /// Locked only because sequences are looked at from many threads.
    coming: Mutex<Receiver<Result<Ready, String>>>,
    ready: Option<Ready>,
}

struct Ready {
    state: prompt::Guide,
    mask: Mask,
}

impl Guides {
    pub(super) fn new(
        text: Arc<TextModel>,
        vocabulary: usize,
        eos: Arc<[u32]>,
        threads: usize,
    ) -> Self {
        Self { text, vocabulary, eos, made: OnceLock::new(), threads }
    }

    fn made(&self) -> Result<&(Arc<Grammars>, ThreadPool), String> {
        if self.made.get().is_none() {
            let grammars = Grammars::new(&self.text, self.vocabulary, &self.eos)
                .map_err(|error: PromptError| error.to_string())?;
            let pool = rayon::ThreadPoolBuilder::new().num_threads(self.threads).build();
            let pool = pool.map_err(|error| error.to_string())?;
            let _ = self.made.set((Arc::new(grammars), pool));
        }
        Ok(self.made.get().expect("it was made above"))
    }

    /// Begins to compile a sequence's constraint, if it has one.
    /// Its first tokens may be `generated` already.
    pub(super) fn begin(
        &self,
        sampling: &Arc<Sampling>,
        generated: Vec<u32>,
    ) -> Result<Option<Guide>, String> {
        if sampling.constraint().is_none() {
            return Ok(None);
        }
        let (grammars, pool) = self.made()?;
        let (send, coming) = sync_channel(1);
        let (grammars, sampling) = (grammars.clone(), sampling.clone());
        pool.spawn(move || {
            let constraint = sampling.constraint().expect("it was there above");
            let ready = grammars.guide(constraint).and_then(|mut state| {
                generated.iter().try_for_each(|&token| state.accept(token))?;
                with_mask(state)
            });
            // Nobody waits for a sequence that is gone.
            let _ = send.send(ready);
        });
        Ok(Some(Guide { coming: Mutex::new(coming), ready: None }))
    }

    /// Takes a chosen token. Tells whether the text now meets the constraint, and whether it is over.
    pub(super) fn accept(&self, guide: &mut Guide, token: u32) -> Result<Standing, String> {
        let Ready { mut state, .. } =
            guide.ready.take().expect("a token is chosen under a mask that was ready");
        state.accept(token)?;
        let standing = Standing { met: state.is_met(), over: state.is_over() };
        if !standing.over {
            let (send, coming) = sync_channel(1);
            guide.coming = Mutex::new(coming);
            self.made()?.1.spawn(move || {
                let _ = send.send(with_mask(state));
            });
        }
        Ok(standing)
    }
}

/// What a text is to its constraint.
#[derive(Clone, Copy)]
pub(super) struct Standing {
    /// The text may end here.
    pub(super) met: bool,
    /// The text must end here.
    pub(super) over: bool,
}

fn with_mask(mut state: prompt::Guide) -> Result<Ready, String> {
    let mask = state.mask()?;
    Ok(Ready { state, mask })
}

impl Guide {
    /// Waits for the mask of the next token.
    pub(super) fn prepare(&mut self) -> Result<(), String> {
        if self.ready.is_none() {
            let coming = self.coming.get_mut().expect("nobody holds it");
            self.ready = Some(coming.recv().map_err(|_| "its grammar was given up".to_owned())??);
        }
        Ok(())
    }

    /// The mask of the next token; it was prepared.
    pub(super) fn mask(&self) -> Option<&Mask> {
        self.ready.as_ref().map(|ready| &ready.mask)
    }
}

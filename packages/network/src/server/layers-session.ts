// What the layers service holds for one session: the layers of its task, what they kept, its last answer, and a queue,
// since layers do one thing at a time.
import type { MiddleLayers, TokenLayout } from '@fellrec/models';
import { type Carrier, payloadBytes } from '../protocol/activations.ts';
import { invalid } from '../protocol/invalid.ts';
import { exhausted, notNow } from './refusals.ts';

/**
 * Middle layers with the state that they have for one client in one task. They do not write to what they returned: it
 * may be asked for again.
 */
export interface ServedLayers extends MiddleLayers {
  readonly hiddenSize: number;
  /** Whether a forward pass can be kept for Decode. */
  readonly canDecode: boolean;
  /** What is wrong with a layout; undefined if nothing is. */
  problem(layout: TokenLayout): string | undefined;
  /** Bytes held between calls: adapter, optimizer state, gradients and what a forward pass kept. */
  readonly heldBytes: number;
  /** Drops what the last forward pass kept. */
  forget(): void;
  /** Frees everything. No call is running. */
  close(): void;
}

/** What the last forward pass kept. */
export type Kept =
  | { readonly for: 'nothing'; readonly why: string }
  | { readonly for: 'gradient'; readonly rows: number }
  /** `users`: sequences that still go on; `beams`: those of each after the last Decode, absent before the first. */
  | { readonly for: 'cache'; readonly users: readonly number[]; readonly beams?: number };

const nothingKept = 'no forward pass was kept for it';

export interface LayersSessionOptions {
  readonly cacheSeconds: number;
  /** Whether the session may hold so many bytes; throws if not. */
  readonly assertFits: (session: LayersSession, bytes: number) => void;
}

interface Answer {
  readonly step: bigint;
  /** Of the request. */
  readonly hash: string;
  readonly message: Carrier;
  readonly bytes: number;
}

export interface NumberedRequest<T extends Carrier> {
  readonly step: bigint;
  /** Of its content. */
  readonly hash: () => string;
  /** Throws if the session has ended meanwhile. */
  readonly assertOpen: () => void;
  readonly work: () => Promise<T>;
}

/** Requests of a session that are there at once: a retry may come while the request is still being done. */
const maxRequests = 4;

export class LayersSession {
  readonly #options: LayersSessionOptions;
  #layers: ServedLayers | undefined;
  #kept: Kept = { for: 'nothing', why: nothingKept };
  #last: Answer | undefined;
  /** Set aside for the request that is being done, and while a pass is kept for Backward for that too. */
  #roomBytes = 0;
  /** Of the layers before the pass that is kept. */
  #baseBytes = 0;
  #requests = 0;
  #tail: Promise<unknown> = Promise.resolve();
  #expiry: NodeJS.Timeout | undefined;

  constructor(options: LayersSessionOptions) {
    this.#options = options;
  }

  get heldBytes(): number {
    return (this.#layers?.heldBytes ?? 0) + (this.#last?.bytes ?? 0) + this.#roomBytes;
  }

  get kept(): Kept {
    return this.#kept;
  }

  /** @throws FAILED_PRECONDITION without a task. */
  get layers(): ServedLayers {
    if (!this.#layers) throw notNow('layers: no task has begun; send Begin first');
    return this.#layers;
  }

  /**
   * Does a request once those before it are done. The last one again, told by its hash, is answered as it was; a refused
   * one does not use up its number.
   */
  async answer<T extends Carrier>({ step, hash, assertOpen, work }: NumberedRequest<T>): Promise<T> {
    if (this.#requests === maxRequests)
      throw exhausted(`layers: ${maxRequests} requests of the session wait for an answer; try again`);
    this.#requests++;
    return this.#inTurn(async () => {
      try {
        assertOpen();
        const found = hash();
        if (this.#last?.step === step) {
          if (this.#last.hash !== found) throw invalid(`step: ${step} was another request`);
          return this.#last.message as T;
        }
        const next = (this.#last?.step ?? 0n) + 1n;
        if (step !== next) throw notNow(`step: expected ${next}, found ${step}`);
        const message = await work();
        assertOpen();
        this.#last = { step, hash: found, message, bytes: payloadBytes(message) };
        return message;
      } finally {
        this.#requests--;
        if (this.#kept.for !== 'gradient') this.#roomBytes = 0;
      }
    });
  }

  /** Takes the layers of a task in place of those before; closes them if there is no memory for them. */
  begin(layers: ServedLayers): void {
    try {
      this.#options.assertFits(this, layers.heldBytes);
    } catch (error) {
      layers.close();
      throw error;
    }
    this.#close();
    this.#layers = layers;
  }

  /** Sets bytes aside for a request that goes on from what was kept, or refuses it. */
  setAside(bytes: number): void {
    if (bytes <= this.#roomBytes) return;
    this.#options.assertFits(this, this.layers.heldBytes + (this.#last?.bytes ?? 0) + bytes);
    this.#roomBytes = bytes;
  }

  /** Sets bytes aside for a forward pass, which takes the place of what was kept, or refuses it. */
  setAsideForForward(bytes: number): void {
    const stays = this.#kept.for === 'nothing' ? this.layers.heldBytes : this.#baseBytes;
    this.#options.assertFits(this, stays + (this.#last?.bytes ?? 0) + bytes);
    this.#roomBytes = bytes;
    this.forget(nothingKept);
    this.#baseBytes = this.layers.heldBytes;
  }

  /** A call of the layers. One that fails leaves them in no known state: they are closed. */
  async compute<T>(call: (layers: ServedLayers) => Promise<T>): Promise<T> {
    try {
      return await call(this.layers);
    } catch (error) {
      this.#close();
      throw error;
    }
  }

  /** Notes what a forward pass kept; forgets it and refuses the request if there turns out to be no memory for it. */
  keepIfFits(kept: Kept, answerBytes: number): void {
    const room = kept.for === 'gradient' ? this.#roomBytes : 0;
    try {
      this.#options.assertFits(this, this.layers.heldBytes + answerBytes + room);
    } catch (error) {
      this.forget('there was no memory for it');
      throw error;
    }
    this.keep(kept);
  }

  /** Notes what is kept, which counts as its use. */
  keep(kept: Kept): void {
    clearTimeout(this.#expiry);
    this.#kept = kept;
    if (kept.for !== 'cache') return;
    const expire = async () => {
      if (this.#kept === kept)
        this.forget(`the cache expired after ${this.#options.cacheSeconds} s; send the prompt again`);
    };
    this.#expiry = setTimeout(() => this.#inTurn(expire), this.#options.cacheSeconds * 1000).unref();
  }

  /** Drops what is kept; `why` is what a request that needs it hears. */
  forget(why: string): void {
    clearTimeout(this.#expiry);
    this.#kept = { for: 'nothing', why };
    this.layers.forget();
  }

  /** Frees everything, once the requests that are there are over. */
  end(): Promise<void> {
    return this.#inTurn(async () => {
      this.#close();
      this.#last = undefined;
    });
  }

  #close(): void {
    clearTimeout(this.#expiry);
    this.#kept = { for: 'nothing', why: nothingKept };
    this.#roomBytes = 0;
    const layers = this.#layers;
    this.#layers = undefined;
    layers?.close();
  }

  #inTurn<T>(work: () => Promise<T>): Promise<T> {
    const done = this.#tail.then(work);
    this.#tail = done.catch(() => {});
    return done;
  }
}

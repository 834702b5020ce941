// Who a request comes from: set once, from its credentials, before any service sees it.
import { type ContextKey, createContextKey } from '@connectrpc/connect';

/** The client's name; empty where nobody was authenticated. */
export const clientKey: ContextKey<string> = createContextKey('', { description: 'authenticated client' });

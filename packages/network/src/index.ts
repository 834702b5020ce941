// Generated code is reached as #proto/federation_pb, #proto/layers_pb and #proto/tensor_pb.
export { FederationService, Phase } from '#proto/federation_pb';
export { LayersService } from '#proto/layers_pb';
export { type Connection, type ConnectOptions, connect } from './client/connection.ts';
export { type ParticipateOptions, participate, type Worker } from './client/participate.ts';
export { layersClient, type RemoteMiddle, remoteMiddle } from './client/remote-middle.ts';
export { type ClientTransportOptions, clientTransport } from './client/transport.ts';
export { createKeys, type KeyFile, type KeysOptions, keysProblems, writeKeys } from './keys.ts';
export type { ActivationsEncoding } from './protocol/activations.ts';
export type { TestResult } from './protocol/test-result.ts';
export {
  type Authenticator,
  authenticator,
  type CredentialOptions,
  readTokens,
  type Tokens,
} from './server/credentials.ts';
export {
  type FederationServer,
  type FederationServiceOptions,
  federationService,
} from './server/federation-service.ts';
export { type LayersServer, layersService } from './server/layers-service.ts';
export type { ServedLayers } from './server/layers-session.ts';
export { type Listening, type ListenOptions, listen } from './server/listen.ts';
export {
  type LogLevel,
  type ServerMetrics,
  type ServerReadings,
  serverLog,
  serverMetrics,
} from './server/metrics.ts';
export { openRecording, type Recording, type RecordingOptions } from './server/record.ts';
export { notFound, notNow } from './server/refusals.ts';
export type { MiddleParameters, RemoteClient } from './server/remote-client.ts';
export type { RosterOptions } from './server/roster.ts';
export { beforeRun, type RunState, runStateAfter } from './server/run-state.ts';
export { type JoinFacts, openSessions, type Session, type Sessions } from './server/sessions.ts';
export { type Turns, type TurnsOptions, turns } from './server/turns.ts';
export { until } from './server/until.ts';

// Original file: proto/ipdr/agent.proto

import type { Long } from '@grpc/proto-loader';

export interface SourceBytes {
  'source'?: (string);
  'bytes'?: (number | string | Long);
}

export interface SourceBytes__Output {
  'source': (string);
  'bytes': (string);
}

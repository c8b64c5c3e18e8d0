// Original file: proto/ipdr/agent.proto

import type { Long } from '@grpc/proto-loader';

export interface PullProgress {
  'layerDigest'?: (string);
  'presentBytes'?: (number | string | Long);
  'totalBytes'?: (number | string | Long);
  'done'?: (boolean);
  'error'?: (string);
}

export interface PullProgress__Output {
  'layerDigest': (string);
  'presentBytes': (string);
  'totalBytes': (string);
  'done': (boolean);
  'error': (string);
}

// Original file: proto/ipdr/agent.proto

import type { Timestamp as _google_protobuf_Timestamp, Timestamp__Output as _google_protobuf_Timestamp__Output } from '../../google/protobuf/Timestamp.ts';
import type { Long } from '@grpc/proto-loader';

export interface WaitedRead {
  'path'?: (string);
  'layerDigest'?: (string);
  'offset'?: (number | string | Long);
  'length'?: (number | string | Long);
  'waitedMs'?: (number | string);
  'at'?: (_google_protobuf_Timestamp | null);
  'error'?: (string);
}

export interface WaitedRead__Output {
  'path': (string);
  'layerDigest': (string);
  'offset': (string);
  'length': (string);
  'waitedMs': (number);
  'at': (_google_protobuf_Timestamp__Output | null);
  'error': (string);
}

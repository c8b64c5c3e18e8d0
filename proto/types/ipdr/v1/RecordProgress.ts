// Original file: proto/ipdr/agent.proto

import type { Long } from '@grpc/proto-loader';

export interface RecordProgress {
  'recordingId'?: (string);
  'ranges'?: (number | string | Long);
  'bytes'?: (number | string | Long);
  'warnings'?: (string)[];
}

export interface RecordProgress__Output {
  'recordingId': (string);
  'ranges': (string);
  'bytes': (string);
  'warnings': (string)[];
}

// Original file: proto/ipdr/agent.proto

import type { Long } from '@grpc/proto-loader';

export interface FinishRecordingResponse {
  'list'?: (Buffer | Uint8Array | string);
  'rootCid'?: (string);
  'manifestDigest'?: (string);
  'ranges'?: (number | string | Long);
  'files'?: (number | string | Long);
  'bytes'?: (number | string | Long);
  'imageBytes'?: (number | string | Long);
}

export interface FinishRecordingResponse__Output {
  'list': (Buffer);
  'rootCid': (string);
  'manifestDigest': (string);
  'ranges': (string);
  'files': (string);
  'bytes': (string);
  'imageBytes': (string);
}

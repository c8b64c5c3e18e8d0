// Original file: proto/ipdr/agent.proto


export interface LayerIndexPart {
  'bytes'?: (Buffer | Uint8Array | string);
}

export interface LayerIndexPart__Output {
  'bytes': (Buffer);
}

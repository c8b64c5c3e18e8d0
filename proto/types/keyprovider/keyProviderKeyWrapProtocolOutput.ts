// Original file: proto/keyprovider/keyprovider.proto


export interface keyProviderKeyWrapProtocolOutput {
  'json'?: (Buffer | Uint8Array | string);
}

export interface keyProviderKeyWrapProtocolOutput__Output {
  'json': (Buffer);
}

import type * as grpc from '@grpc/grpc-js';
import type { MessageTypeDefinition } from '@grpc/proto-loader';

import type { KeyProviderServiceClient as _keyprovider_KeyProviderServiceClient, KeyProviderServiceDefinition as _keyprovider_KeyProviderServiceDefinition } from './keyprovider/KeyProviderService.ts';
import type { keyProviderKeyWrapProtocolInput as _keyprovider_keyProviderKeyWrapProtocolInput, keyProviderKeyWrapProtocolInput__Output as _keyprovider_keyProviderKeyWrapProtocolInput__Output } from './keyprovider/keyProviderKeyWrapProtocolInput.ts';
import type { keyProviderKeyWrapProtocolOutput as _keyprovider_keyProviderKeyWrapProtocolOutput, keyProviderKeyWrapProtocolOutput__Output as _keyprovider_keyProviderKeyWrapProtocolOutput__Output } from './keyprovider/keyProviderKeyWrapProtocolOutput.ts';

type SubtypeConstructor<Constructor extends new (...args: any) => any, Subtype> = {
  new(...args: ConstructorParameters<Constructor>): Subtype;
};

export interface ProtoGrpcType {
  keyprovider: {
    KeyProviderService: SubtypeConstructor<typeof grpc.Client, _keyprovider_KeyProviderServiceClient> & { service: _keyprovider_KeyProviderServiceDefinition }
    keyProviderKeyWrapProtocolInput: MessageTypeDefinition<_keyprovider_keyProviderKeyWrapProtocolInput, _keyprovider_keyProviderKeyWrapProtocolInput__Output>
    keyProviderKeyWrapProtocolOutput: MessageTypeDefinition<_keyprovider_keyProviderKeyWrapProtocolOutput, _keyprovider_keyProviderKeyWrapProtocolOutput__Output>
  }
}

